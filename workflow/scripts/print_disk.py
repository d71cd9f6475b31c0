"""Print how large the results are, and what could go."""

from vlmflow.cli import run
from vlmflow.housekeeping.disk import print_disk

run(print_disk)
