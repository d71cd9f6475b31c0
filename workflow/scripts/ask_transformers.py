"""Let one checkpoint answer questions in transformers."""

from vlmflow.cli import run
from vlmflow.evaluation.engines.transformers import ask_transformers

run(ask_transformers)
