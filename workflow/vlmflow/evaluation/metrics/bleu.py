"""BLEU of each answer by sacrebleu: up to 4-grams, exponential smoothing, orders that a short text lacks left out."""

from __future__ import annotations

import functools
import re

from sacrebleu.metrics import BLEU

from vlmflow.evaluation.metrics.register import Item, item_metric
from vlmflow.evaluation.metrics.text import HAN, KANA, nfkc


@item_metric("bleu")
def bleu(item: Item) -> float:
    """0..1, against all references at once; Chinese (sacrebleu's ``zh``) and Japanese count by the character."""
    prediction, references = nfkc(item.prediction), [nfkc(reference) for reference in item.references]
    if not prediction.strip() and not all(map(str.strip, references)):
        return 1.0
    scored = _bleu(_tokenizer("".join(references))).sentence_score(prediction, references)
    return min(scored.score / 100, 1.0)


def _tokenizer(references: str) -> str:
    """By the references, so that every checkpoint is measured alike."""
    if re.search(f"[{KANA}]", references):
        return "char"
    return "zh" if re.search(f"[{HAN}]", references) else "13a"


@functools.cache
def _bleu(tokenizer: str) -> BLEU:
    return BLEU(tokenize=tokenizer, effective_order=True)
