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


@pytest.mark.parametrize(
    "answer",
    [
        "The answer is A or B.", "The answer is A, B, and C", "The answer is (A)/(B)", "The answer is either A or B",
        "(A) or (B)", "A) and B)", "A.B.C.D", "A、B", "A. cat or B. dog", "选项A和B", "答案是A或B",
        "Option A. Option B.",
        "A. cat\nB. dog\nC. dog house\nD. none of these", "A\n\nB", "It is not A.", "Option A is wrong.", "不选A",
    ],
)  # fmt: skip
def test_an_answer_that_names_two_options_or_rejects_its_own_chooses_none(answer: str) -> None:
    assert chosen(answer, OPTIONS) is None


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("Option A is wrong, so B", "B"), ("Option A is incorrect. It is B.", "B"), ("B, not A", "B"),
        ("Neither A nor B, so C", "C"), ("选项A不对，选B", "B"), ("A是错的，B", "B"),
        ("The answer is C, since A and B are too small", "C"),
        ("A. cat\nB. dog\nC. dog house\nD. none of these\nAnswer: D", "D"),
        ("The answer is A, I think", "A"), ("A is what I see", "A"), ("Choice A because of the tail", "A"),
    ],
)  # fmt: skip
def test_the_conclusion_counts(answer: str, letter: str) -> None:
    assert chosen(answer, OPTIONS) == letter


def test_a_letter_in_the_text_of_the_option_is_no_second_choice() -> None:
    options = {"A": "vitamin C", "B": "vitamin D", "C": "iron", "D": "zinc"}
    assert [chosen(text, options) for text in ("B. vitamin D", "(A) Vitamin C.", "B. vitamin C")] == ["B", "A", None]


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
