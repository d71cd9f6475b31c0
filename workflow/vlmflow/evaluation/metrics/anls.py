"""Average normalised Levenshtein similarity of text in documents (DocVQA, ST-VQA: arxiv.org/abs/1905.13648)."""

from __future__ import annotations

from rapidfuzz.distance import Levenshtein

from vlmflow.evaluation.metrics.register import metric
from vlmflow.evaluation.metrics.text import nfkc

_THRESHOLD = 0.5


@metric("anls")
def anls(prediction: str, reference: str) -> float:
    """1 - edit distance / length of the longer text, or 0 below 0.5; case and whitespace do not count.

    Exactly 0.5 is kept, as in the challenge's evaluation script (the paper's formula drops it).
    """
    text, wanted = (" ".join(nfkc(text).lower().split()) for text in (prediction, reference))
    similarity = Levenshtein.normalized_similarity(text, wanted)
    return similarity if similarity >= _THRESHOLD else 0.0
