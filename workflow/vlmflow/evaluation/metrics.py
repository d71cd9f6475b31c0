"""Metrics: how right one answer is. To add one, write ``@metric`` above a function in this file; its name is its key.

A metric takes (prediction, reference) and returns a score from 0 (wrong) to 1 (right); means over records are reported.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Callable

from vlmflow.errors import UserError

Metric = Callable[[str, str], float]

METRICS: dict[str, Metric] = {}

_FINAL_PUNCTUATION = ".,;:!?。、"  # after NFKC, which maps full-width and half-width forms onto these
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003134f"
_SPACED_WORD = rf"[^\W{_CJK}]"  # a letter or digit of a script that puts spaces between words


def metric(function: Metric) -> Metric:
    """Register ``function`` in :data:`METRICS` under its own name."""
    METRICS[function.__name__] = function
    return function


def find_metric(name: str) -> Metric:
    """The metric called ``name``; :class:`UserError` with the nearest right name otherwise."""
    if name in METRICS:
        return METRICS[name]
    near = difflib.get_close_matches(name, METRICS, n=1)
    advice = f"did you mean '{near[0]}'?" if near else f"there is {', '.join(sorted(METRICS))}"
    raise UserError(f"no metric '{name}'", advice, field="metrics")


def normalise(text: str) -> str:
    """NFKC, case folded, inner whitespace collapsed, outer whitespace and final punctuation removed.

    Text that is punctuation only is kept, so that it never equals an empty answer.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    collapsed = " ".join(folded.split())
    return collapsed.rstrip(_FINAL_PUNCTUATION + " ") or collapsed


@metric
def exact_match(prediction: str, reference: str) -> float:
    """1 when both are the same after :func:`normalise`."""
    return float(normalise(prediction) == normalise(reference))


@metric
def contains(prediction: str, reference: str) -> float:
    """1 when the reference occurs in the prediction, both normalised, as whole words.

    Chinese, Japanese and Korean text needs no word boundary. ``3`` is not found in ``3.5``.
    """
    wanted, text = normalise(reference), normalise(prediction)
    if not wanted:
        return float(not text)
    before = rf"(?<!{_SPACED_WORD})" if re.match(_SPACED_WORD, wanted) else ""
    after = rf"(?!{_SPACED_WORD})" if re.match(_SPACED_WORD, wanted[-1]) else ""
    before += r"(?<!\d\.)" if wanted[0].isdigit() else ""
    after += r"(?!\.\d)" if wanted[-1].isdigit() else ""
    return float(re.search(before + re.escape(wanted) + after, text) is not None)
