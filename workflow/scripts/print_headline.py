"""Print the headline of a finished experiment."""

from vlmflow.cli import run
from vlmflow.report.headline import print_headline

run(print_headline)
