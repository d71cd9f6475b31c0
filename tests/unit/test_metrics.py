import pytest

from vlmflow.errors import UserError
from vlmflow.evaluation.metrics import METRICS, contains, exact_match, find_metric, normalise


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Seven. ", "seven"),
        ("SEVEN！", "seven"),
        ("七。", "七"),
        ("七．", "七"),
        ("two\n  words ?!", "two words"),
        ("１２", "12"),
        ("Straße", "strasse"),
        ("C#", "c#"),
        ("50%", "50%"),
        ("3.5", "3.5"),
        ("...", "..."),
        ("", ""),
    ],
)
def test_normalise(text: str, expected: str) -> None:
    assert normalise(text) == expected


def test_exact_match() -> None:
    assert exact_match("Seven.", "seven") == 1.0
    assert exact_match("It is seven", "seven") == 0.0
    assert exact_match("宫保鸡丁。", "宫保鸡丁") == 1.0
    assert exact_match("?", "") == 0.0


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("It is a seven.", "Seven", 1.0),
        ("It is seventeen.", "seven", 0.0),
        ("unseven", "seven", 0.0),
        ("这是宫保鸡丁吧", "宫保鸡丁", 1.0),
        ("答案是seven吧", "seven", 1.0),
        ("这是宫保肉丁", "宫保鸡丁", 0.0),
        ("about 3.5 metres", "3", 0.0),
        ("about 13.5 metres", "5", 0.0),
        ("there are 3.", "3", 1.0),
        ("C++ it is", "c++", 1.0),
        ("a (b) c", "(b)", 1.0),
        ("anything", "", 0.0),
        ("", "seven", 0.0),
    ],
)
def test_contains(prediction: str, reference: str, expected: float) -> None:
    assert contains(prediction, reference) == expected


def test_a_misspelt_metric_is_named_with_the_right_one() -> None:
    assert find_metric("exact_match") is METRICS["exact_match"]
    with pytest.raises(UserError, match="did you mean 'exact_match'"):
        find_metric("exact-match")
    with pytest.raises(UserError, match="there is contains, exact_match"):
        find_metric("bleu")
