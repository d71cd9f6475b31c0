"""Compare the answers of LMDeploy with those of transformers."""

from vlmflow.cli import run
from vlmflow.evaluation.parity import check_parity

run(check_parity)
