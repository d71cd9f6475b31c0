"""Let one checkpoint answer the questions of one evaluation."""

from vlmflow.cli import run
from vlmflow.evaluation.generate import evaluate_checkpoint

run(evaluate_checkpoint)
