"""Whether the answer is the reference, or has it in it."""

from __future__ import annotations

import re

from vlmflow.evaluation.metrics.register import metric
from vlmflow.evaluation.metrics.text import SPACED_WORD, normalise

_IN_WORD = re.compile(SPACED_WORD)
_NUMBER = re.compile(rf"(?:(?<!{SPACED_WORD})[-\u2212])?(?:\d{{1,3}}(?:,\d{{3}})+(?!\d)|\d+)(?:\.\d+)*")


@metric("exact_match")
def exact_match(prediction: str, reference: str) -> float:
    """1 when both are the same after :func:`normalise`."""
    return float(normalise(prediction) == normalise(reference))


@metric("contains")
def contains(prediction: str, reference: str) -> float:
    """1 when the reference occurs in the prediction, both normalised, as whole words.

    Chinese, Japanese and Korean text needs no word boundary. ``3`` is not found in ``3.5``, ``3,000`` and ``-3``.
    """
    wanted, text = normalise(reference), normalise(prediction)
    if not wanted:
        return float(not text)
    inside = {place for number in _NUMBER.finditer(text) for place in range(number.start() + 1, number.end())}
    start = text.find(wanted)
    while start >= 0 and not _stands_alone(text, start, start + len(wanted), inside):
        start = text.find(wanted, start + 1)
    return float(start >= 0)


def _stands_alone(text: str, start: int, end: int, inside: set[int]) -> bool:
    """Whether ``text[start:end]`` is no part of a longer word or number; ``inside``: places within numbers."""
    if _IN_WORD.match(text[start]) and _IN_WORD.match(text[max(start - 1, 0) : start]):
        return False
    if _IN_WORD.match(text[end - 1]) and _IN_WORD.match(text[end : end + 1]):
        return False
    return inside.isdisjoint((start, end))
