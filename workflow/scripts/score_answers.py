"""Score the answers of one checkpoint to one evaluation."""

from vlmflow.cli import run
from vlmflow.evaluation.score import score_answers

run(score_answers)
