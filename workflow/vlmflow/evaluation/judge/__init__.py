"""The metric ``judge``: a language model says how right an answer is. What is imported here is light."""

from vlmflow.evaluation.judge.check import judge_contradictions
from vlmflow.evaluation.judge.judged import read_judged

__all__ = ["judge_contradictions", "read_judged"]
