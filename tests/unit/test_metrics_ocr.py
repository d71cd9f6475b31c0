"""Recognised text: ANLS against the challenge's script, error rates against counted edits."""

from __future__ import annotations

import pytest

from vlmflow.evaluation.metrics import Item
from vlmflow.evaluation.metrics.anls import anls
from vlmflow.evaluation.metrics.error_rate import cer, wer


def edits(left: str, right: str) -> int:
    """Levenshtein's distance by its definition."""
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        row, above = [i], row
        for j, b in enumerate(right, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (a != b)))
    return row[-1]


def official(prediction: str, reference: str) -> float:
    """The challenge's script: edits over the longer text, and nothing below 0.5."""
    prediction, reference = (" ".join(text.strip().lower().split()) for text in (prediction, reference))
    length = max(len(prediction), len(reference))
    similarity = 1 - (edits(prediction, reference) / length if length else 0.0)
    return similarity if similarity >= 0.5 else 0.0


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("The Coca-Cola Company", "the coca-cola  company", 1.0),
        ("$576,000", "$576,100", 7 / 8),
        ("abcd", "abxy", 0.5),
        ("abcd", "axyz", 0.0),
        ("Invoice 12", "12", 0.0),
        ("１２", "12", 1.0),
        ("", "12", 0.0),
        ("", "", 1.0),
    ],
)
def test_anls(prediction: str, reference: str, expected: float) -> None:
    assert anls(prediction, reference) == pytest.approx(expected)
    if prediction.isascii():
        assert anls(prediction, reference) == pytest.approx(official(prediction, reference))


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("kitten", "sitting", 3 / 7),
        ("宫保 鸡丁", "宫保鸡丁", 0.0),
        ("宫爆鸡丁", "宫保鸡丁", 1 / 4),
        ("ＡＢ", "AB", 0.0),
        ("ab", "Ab", 1 / 2),
        ("a b", "ab", 1 / 2),
        ("abcdef", "ab", 2.0),
        ("", "ab", 1.0),
        ("ab", "", 1.0),
        ("", "", 0.0),
    ],
)
def test_character_error_rate(prediction: str, reference: str, expected: float) -> None:
    assert cer(Item(prediction, (reference,))) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("the cat sat on mat", "the cat sat on the mat", 1 / 6),
        ("hello duck", "hello world", 1 / 2),
        ("宫爆鸡丁 is good", "宫保鸡丁 is good", 1 / 6),
        ("a b c", "a", 2.0),
        ("a", "", 1.0),
    ],
)
def test_word_error_rate(prediction: str, reference: str, expected: float) -> None:
    assert wer(Item(prediction, (reference,))) == pytest.approx(expected)


def test_the_nearest_reference_counts() -> None:
    item = Item("abcd", ("xxxx", "abce", "abcde fghi"))
    assert cer(item) == 1 / 4
    assert wer(Item("a b", ("c d", "a c"))) == 1 / 2
