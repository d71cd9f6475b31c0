"""Let one checkpoint answer questions in transformers."""

from vlmflow.cli import run
from vlmflow.evaluation.ask_transformers import ask_transformers

run(ask_transformers)
