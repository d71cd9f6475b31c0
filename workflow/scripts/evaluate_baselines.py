"""Majority and nearest-neighbour answers for one evaluation."""

from vlmflow.cli import run
from vlmflow.evaluation.unaided import evaluate_unaided

run(evaluate_unaided)
