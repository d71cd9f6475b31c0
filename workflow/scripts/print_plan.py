"""Print what the training stages will need."""

from vlmflow.cli import run
from vlmflow.cost.forecast_table import print_plan

run(print_plan)
