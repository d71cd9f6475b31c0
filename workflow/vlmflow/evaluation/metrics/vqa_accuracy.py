"""VQA accuracy of visual question answering with several human answers (VQA v2, TextVQA, VizWiz).

Follows the official evaluation (visualqa.org/evaluation) and its code, with two differences that data other than theirs
needs: prediction and references are always normalised (the official code leaves unanimous references as they are), and
fewer than four references are alternatives, of which one match is enough: leaving one out would make 1 unreachable.
"""

from __future__ import annotations

import re

from vlmflow.evaluation.metrics.register import Item, item_metric
from vlmflow.evaluation.metrics.text import nfkc

_ARTICLES = frozenset(("a", "an", "the"))
_COUNTED = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_COUNTED)}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_REPAIRED = {
    word[: mark.start()] + word[mark.end() :]: word for word in _CONTRACTIONS.split() for mark in re.finditer("'", word)
}
"""Each contraction with one apostrophe left out -> the contraction."""


@item_metric("vqa_accuracy")
def vqa_accuracy(item: Item) -> float:
    """min(matches / 3, 1), averaged over the references with each of them left out in turn.

    Ten references beside a last turn that is one of them are the ten human answers; that turn is no eleventh.
    """
    votes = [vqa_normalise(reference) for reference in item.references]
    if len(votes) == 11 and votes[0] in votes[1:]:
        votes = votes[1:]
    n, matches = len(votes), votes.count(vqa_normalise(item.prediction))
    if n < 4:
        return float(matches > 0)
    return (matches * min(max(matches - 1, 0) / 3, 1.0) + (n - matches) * min(matches / 3, 1.0)) / n


def vqa_normalise(text: str) -> str:
    """Lower case, no articles, numbers up to ten as digits, no punctuation but in numbers, apostrophes put back."""
    text = " ".join(nfkc(text).split())
    joined = re.search(r"\d,\d", text) is not None
    bare = text
    for mark in _PUNCTUATION:
        bare = bare.replace(mark, "" if joined or f"{mark} " in text or f" {mark}" in text else " ")
    numbered = (_NUMBERS.get(word, word) for word in re.sub(r"\.(?!\d)", "", bare).lower().split())
    return " ".join(_REPAIRED.get(word, word) for word in numbered if word not in _ARTICLES)
