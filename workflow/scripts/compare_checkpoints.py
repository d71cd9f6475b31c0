"""Compare the checkpoints of one experiment, before and after."""

from vlmflow.cli import run
from vlmflow.evaluation.compare import compare_checkpoints

run(compare_checkpoints)
