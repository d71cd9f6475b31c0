"""chrF2 of each answer by sacrebleu: F-score of character 1- to 6-grams, recall weighted twice; for any language."""

from __future__ import annotations

import functools

from sacrebleu.metrics import CHRF

from vlmflow.evaluation.metrics.register import Item, item_metric
from vlmflow.evaluation.metrics.text import nfkc


@item_metric("chrf")
def chrf(item: Item) -> float:
    """0..1, of the best reference; whitespace does not count."""
    prediction, references = nfkc(item.prediction), [nfkc(reference) for reference in item.references]
    if not prediction.strip() and not all(map(str.strip, references)):
        return 1.0
    return min(_chrf().sentence_score(prediction, references).score / 100, 1.0)


@functools.cache
def _chrf() -> CHRF:
    return CHRF()
