"""Let a language model grade the answers of one checkpoint."""

import os

from vlmflow import secrets
from vlmflow.cli import run
from vlmflow.evaluation.judge.judging import judge_answers

secrets.take_back(os.environ)
run(judge_answers)
