"""Whether the answer is the reference, or has it in it."""

from __future__ import annotations

import re

from vlmflow.evaluation.metrics.register import metric
from vlmflow.evaluation.metrics.text import SPACED_WORD, normalise

_IN_WORD = re.compile(SPACED_WORD)
_POINT_AFTER_DIGIT, _POINT_BEFORE_DIGIT = re.compile(r"\d\."), re.compile(r"\.\d")


@metric("exact_match")
def exact_match(prediction: str, reference: str) -> float:
    """1 when both are the same after :func:`normalise`."""
    return float(normalise(prediction) == normalise(reference))


@metric("contains")
def contains(prediction: str, reference: str) -> float:
    """1 when the reference occurs in the prediction, both normalised, as whole words.

    Chinese, Japanese and Korean text needs no word boundary. ``3`` is not found in ``3.5``.
    """
    wanted, text = normalise(reference), normalise(prediction)
    if not wanted:
        return float(not text)
    start = text.find(wanted)
    while start >= 0 and not _stands_alone(text, start, start + len(wanted)):
        start = text.find(wanted, start + 1)
    return float(start >= 0)


def _stands_alone(text: str, start: int, end: int) -> bool:
    """Whether ``text[start:end]`` is no part of a longer word or number."""
    before, after = text[max(start - 2, 0) : start], text[end : end + 2]
    if _IN_WORD.match(text[start]) and _IN_WORD.match(before[-1:]):
        return False
    if _IN_WORD.match(text[end - 1]) and _IN_WORD.match(after):
        return False
    return not (text[start].isdigit() and _POINT_AFTER_DIGIT.match(before)) and not (
        text[end - 1].isdigit() and _POINT_BEFORE_DIGIT.match(after)
    )
