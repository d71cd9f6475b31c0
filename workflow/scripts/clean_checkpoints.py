"""Delete the training state of stages that are complete."""

from vlmflow.cli import run
from vlmflow.housekeeping.checkpoints import clean_checkpoints

run(clean_checkpoints)
