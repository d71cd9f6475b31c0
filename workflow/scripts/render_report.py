"""Write the report page of one experiment."""

from vlmflow.cli import run
from vlmflow.report.experiment import report_experiment

run(report_experiment)
