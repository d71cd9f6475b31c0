"""Write and print the table over all experiments that are finished."""

from vlmflow.cli import run
from vlmflow.report.table import tabulate_results

run(tabulate_results)
