"""Relaxed accuracy of answers about charts (ChartQA, arxiv.org/abs/2203.10244): numbers may be 5% off."""

from __future__ import annotations

import math
import re

from vlmflow.evaluation.metrics.register import metric
from vlmflow.evaluation.metrics.text import normalise

_TOLERANCE = 0.05
_NUMBER = re.compile(r"(?=[-+]?\.?\d)[-+]?(?:\d{1,3}(?:,\d{3})+|\d{1,300})?(?:\.\d{1,300})?(?:e[-+]?\d{1,3})?(?: ?%)?")


@metric("relaxed_accuracy")
def relaxed_accuracy(prediction: str, reference: str) -> float:
    """1 when both are numbers at most 5% of the reference apart, or the same text after :func:`normalise`.

    ``12%`` is 0.12, ``1,000`` and ``1e3`` are 1000; units and words beside a number make it text.
    """
    text, wanted = normalise(prediction), normalise(reference)
    number, right = _number(text), _number(wanted)
    if number is None or not right:
        return float(text == wanted or (number is not None and number == right))
    return float(abs(number - right) <= _TOLERANCE * abs(right))


def _number(text: str) -> float | None:
    text = text.replace("\N{MINUS SIGN}", "-")
    if not _NUMBER.fullmatch(text):
        return None
    value = float(text.rstrip(" %").replace(",", "")) / (100 if text.endswith("%") else 1)
    return value if math.isfinite(value) else None
