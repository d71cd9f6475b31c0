"""CIDEr-D of captions (arxiv.org/abs/1411.5726) by pycocoevalcap: words that few references have weigh more.

How rare words are is counted in the references of the whole evaluation, so a score belongs to its set of records; of a
single record every score is 0. Words are those of :func:`words`, as the tokenizer of coco-caption needs Java.
"""

from __future__ import annotations

from collections.abc import Sequence

from pycocoevalcap.cider.cider_scorer import CiderScorer

from vlmflow.evaluation.metrics.register import Item, corpus_metric
from vlmflow.evaluation.metrics.text import words


@corpus_metric("cider")
def cider(items: Sequence[Item]) -> list[float]:
    """0..10 for each item; papers print the mean times 100."""
    references = [[" ".join(words(reference)) for reference in item.references] for item in items]
    if not any(map(any, references)):
        return [0.0] * len(items)
    scorer = CiderScorer()
    for item, wanted in zip(items, references, strict=True):
        scorer += (" ".join(words(item.prediction)), wanted)
    _, scores = scorer.compute_score()
    return [float(score) for score in scores]
