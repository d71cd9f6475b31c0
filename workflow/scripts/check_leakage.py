"""Compare the training pictures of a finetune with those of every evaluation of its experiments."""

from vlmflow.cli import run
from vlmflow.data.leakage import check_leakage

run(check_leakage)
