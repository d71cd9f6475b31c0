"""VQA accuracy, against the examples of visualqa.org/evaluation and values of the official code."""

from __future__ import annotations

import pytest

from vlmflow.evaluation.metrics import Item
from vlmflow.evaluation.metrics.vqa_accuracy import vqa_accuracy, vqa_normalise


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes.", "yes"),
        ("dont", "don't"),
        ("girl's", "girl's"),
        ("2:50 pm", "2:50 pm"),
        ("100,978", "100978"),
        ("3.5", "3.5"),
        ("two", "2"),
        ("none", "0"),
        ("a cat on the mat", "cat on mat"),
        ("black/white", "black white"),
        ("red, white and blue", "red white and blue"),
        ("t-shirt", "t shirt"),
        ("couldnt've", "couldn't've"),
        ("U.S.A.", "usa"),
        ("ｙｅｓ！\n", "yes"),
        ("  ", ""),
    ],
)
def test_official_normalisation(text: str, expected: str) -> None:
    assert vqa_normalise(text) == expected


@pytest.mark.parametrize(("matches", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_ten_human_answers(matches: int, expected: float) -> None:
    votes = ("Two.",) * matches + tuple(f"other {number}" for number in range(10 - matches))
    assert vqa_accuracy(Item("2", votes)) == pytest.approx(expected)
    if matches:
        assert vqa_accuracy(Item("2", ("two", *votes))) == pytest.approx(expected), "the last turn voted already"


def test_few_answers_are_alternatives() -> None:
    assert vqa_accuracy(Item("a dog", ("dog",))) == 1.0
    assert vqa_accuracy(Item("puppy", ("dog", "puppy", "animal"))) == 1.0
    assert vqa_accuracy(Item("puppy", ("dog", "dog", "dog", "puppy"))) == pytest.approx(0.25)
    assert vqa_accuracy(Item("cat", ("dog",))) == 0.0
    assert vqa_accuracy(Item("", ("dog",))) == 0.0
