"""Character and word error rate of recognised text: edits (insert, delete, replace) over the reference's length.

They are means over records, not over the characters of all records. An answer longer than its reference may exceed 1.
"""

from __future__ import annotations

from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

from vlmflow.evaluation.metrics.register import Item, item_metric
from vlmflow.evaluation.metrics.text import characters, tokens


@item_metric("cer")
def cer(item: Item) -> float:
    """Of the nearest reference; case and punctuation count."""
    return min(error_rate(characters(item.prediction), characters(reference)) for reference in item.references)


@item_metric("wer")
def wer(item: Item) -> float:
    """Of the nearest reference; a word is what stands between whitespace, or one Chinese or Japanese character."""
    return min(error_rate(tokens(item.prediction), tokens(reference)) for reference in item.references)


def error_rate(prediction: Sequence[str], reference: Sequence[str]) -> float:
    """Edits over the length of the reference; of an empty reference, 0 or 1."""
    if not reference:
        return float(len(prediction) > 0)
    return Levenshtein.distance(prediction, reference) / len(reference)
