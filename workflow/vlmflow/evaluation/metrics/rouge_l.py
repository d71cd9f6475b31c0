"""ROUGE-L: F1 of the longest common subsequence of words (Lin 2004), as the rouge-score library defines it.

The subsequence comes from rapidfuzz, which takes milliseconds where rouge-score's table of all pairs takes minutes.
"""

from __future__ import annotations

from rapidfuzz.distance import LCSseq

from vlmflow.evaluation.metrics.register import metric
from vlmflow.evaluation.metrics.text import normalise, words


@metric("rouge_l")
def rouge_l(prediction: str, reference: str) -> float:
    """F1, without stemming; text without any word is right if it is the same."""
    text, wanted = words(prediction), words(reference)
    if not text and not wanted:
        return float(normalise(prediction) == normalise(reference))
    return 2 * LCSseq.similarity(text, wanted) / (len(text) + len(wanted))
