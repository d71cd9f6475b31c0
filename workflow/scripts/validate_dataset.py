"""Check every record and picture of one data set and write its splits."""

from vlmflow.cli import run
from vlmflow.data.validate import validate_dataset

run(validate_dataset)
