"""Estimate what a training stage will need."""

from vlmflow.cli import run
from vlmflow.cost.forecast import plan_training

run(plan_training)
