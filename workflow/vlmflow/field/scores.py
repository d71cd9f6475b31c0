"""Which numbers of a suite's row are scores of its answer."""

from __future__ import annotations

import math
import re
from typing import Any

from vlmflow.evaluation.metrics import NAMES, lower_is_better, perfect

_HIGHEST = 100.0
"""What suites score up to: 1, 10 or 100."""
_NO_SCORE = re.compile(
    r"(^|_)(id|index|seed|ms|s|secs?|seconds?|time|latency|duration|tokens?|length|len|size|count|n)$|^(num|n)_", re.I
)
"""Names, by their last or first word, of numbers that identify an answer, or tell its time or size."""


def as_scores(cells: dict[str, Any]) -> dict[str, float]:
    """Those of ``cells`` that can be scores: truth values and numbers from 0 to 100, not called like a time or size.

    A metric that is called like one of ours must be on the same scale, else it is left out: 34.5 is no ``bleu``.
    """
    found = {name: cell for name, cell in cells.items() if isinstance(cell, int | float) and not _NO_SCORE.search(name)}
    return {name: float(cell) for name, cell in found.items() if math.isfinite(cell) and 0 <= cell <= _highest(name)}


def _highest(name: str) -> float:
    return perfect(name) if name in NAMES and not lower_is_better(name) else _HIGHEST
