"""Write the table over the variants of a sweep."""

from vlmflow.cli import run
from vlmflow.report.table import tabulate_sweep

run(tabulate_sweep)
