"""Let a vision-language model write questions and answers for the pictures of one data set."""

from vlmflow.cli import run
from vlmflow.data.generate import generate_annotations

run(generate_annotations)
