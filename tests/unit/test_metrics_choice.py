"""Multiple choice: which option a free answer chooses."""

from __future__ import annotations

import pytest

from vlmflow.evaluation.metrics import Item
from vlmflow.evaluation.metrics.multiple_choice import chosen, multiple_choice, options_of

OPTIONS = {"A": "cat", "B": "dog", "C": "dog house", "D": "none of these"}
QUESTION = "<image>\nWhat is it?\nA. cat\nB. dog\nC. dog house\nD. none of these\nAnswer with the option's letter."


@pytest.mark.parametrize(
    "question",
    [
        QUESTION,
        "What is it? (A) cat (B) dog (C) dog house (D) none of these",
        "Options: A: cat, B: dog, C: dog house, D: none of these",
        "看 A) 吧\nA、cat\nB、dog\nC．dog house\nＤ．none of these",
    ],
)
def test_options_of_a_question(question: str) -> None:
    assert options_of(question) == OPTIONS


def test_a_question_without_options() -> None:
    assert options_of("What did Mr. A. Smith see?") == {}
    assert options_of("") == {}


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"), ("b.", "B"), ("(B)", "B"), ("**B**", "B"), ("B. cat", "B"), ("B、狗", "B"), ("（B）", "B"),
        ("The answer is B.", "B"), ("Answer: (B) dog", "B"), ("the correct option is B", "B"), ("答案是B。", "B"),
        ("选择 B", "B"), (r"\boxed{B}", "B"), ("First I thought answer A, but the answer is C", "C"),
        ("Dog.", "B"), ("It is a dog house", "C"), ("It is a dog", "B"), ("A dog can be seen", "B"),
        ("I would say D here", "D"), ("a cat or a dog", None), ("A or B", None), ("E", None), ("", None), ("?", None),
    ],
)  # fmt: skip
def test_the_chosen_option(answer: str, letter: str | None) -> None:
    assert chosen(answer, OPTIONS) == letter


def test_references_as_letter_or_text() -> None:
    for reference in ("B", "(b)", "B. dog", "dog", "The answer is B"):
        assert multiple_choice(Item("It must be B", (reference,), question=QUESTION)) == 1.0
        assert multiple_choice(Item("It must be A", (reference,), question=QUESTION)) == 0.0
    assert multiple_choice(Item("C", ("A", "C"), question=QUESTION)) == 1.0


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("(B) dog", "B", 1.0), ("B", "B. dog", 1.0), ("Dog", "B. dog", 1.0), ("C", "B. dog", 0.0), ("", "B", 0.0),
        ("Yes.", "yes", 1.0), ("no", "yes", 0.0), ("", "", 1.0), ("B", "", 0.0),
    ],
)  # fmt: skip
def test_without_options_in_the_question(answer: str, reference: str, expected: float) -> None:
    assert multiple_choice(Item(answer, (reference,))) == expected
