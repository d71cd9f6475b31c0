"""Let a vision-language model write questions and answers for the pictures of one data set."""

import os

from vlmflow import secrets
from vlmflow.cli import run
from vlmflow.data.generate import generate_annotations

secrets.take_back(os.environ)
run(generate_annotations)
