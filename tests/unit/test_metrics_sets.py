"""Sets and numbers."""

from __future__ import annotations

import pytest

from vlmflow.evaluation.metrics.relaxed_accuracy import relaxed_accuracy
from vlmflow.evaluation.metrics.set_f1 import members, set_f1


@pytest.mark.parametrize(
    "text",
    [
        "cat, dog, red car",
        "Cat; dog; RED  car.",
        "猫".replace("猫", "cat") + "、dog，red car",
        "- cat\n- dog\n- red car\n",
        "1. cat\n2. dog\n3. red car",
        "1、cat\n2、dog\n3、red car",
        '["cat", "dog", "red car", "cat"]',
        '```json\n["dog", "cat", "red car"]\n```',
        "dog, cat, cat, and red car",
    ],
)
def test_members_as_models_write_them(text: str) -> None:
    assert members(text) == {"cat", "dog", "red car"}


def test_members_that_look_like_marks() -> None:
    assert members("1, 2, 3") == members("[1, 2, 3]") == {"1", "2", "3"}
    assert members("1、2、3.5\n-4") == {"1", "2", "3.5", "-4"}
    assert members("[broken, list") == {"[broken", "list"}
    assert members('[{"a": 1}, null]') == {'{"a": 1}', "null"}
    assert members(" ,;\n") == members("") == members("[]") == frozenset()


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("a, b, c", "c, b, a", 1.0),
        ("a, b", "a, b, c", 0.8),
        ("a, x, y, z", "a, b", 1 / 3),
        ("x", "a", 0.0),
        ("1,000, cat", "cat; 1000", 1.0),
        ('["1,000"]', "1,000", 1.0),
        ("1,20,300", "300, 20, 1", 1.0),
        ("", "a", 0.0),
        ("a", "", 0.0),
        ("", "", 1.0),
    ],
)
def test_set_f1(prediction: str, reference: str, expected: float) -> None:
    assert set_f1(prediction, reference) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("95", "100", 1.0),
        ("105", "100", 1.0),
        ("94.9", "100", 0.0),
        ("-95", "-100", 1.0),
        ("12%", "0.12", 1.0),
        ("12.5 %", "12.5%", 1.0),
        ("\u22125", "-5", 1.0),
        ("1e3", "1000", 1.0),
        ("1.2E-1", "12%", 1.0),
        ("-.5", "-0.5", 1.0),
        ("e5", "5", 0.0),
        ("9e99", "9" * 300 + "e99", 0.0),
        ("1,000", "1020", 1.0),
        ("0", "0", 1.0),
        ("0.0", "0", 1.0),
        ("0.01", "0", 0.0),
        ("Blue.", "blue", 1.0),
        ("about 100", "100", 0.0),
        ("nan", "100", 0.0),
        ("1e999", "100", 0.0),
        ("9" * 20_000, "100", 0.0),
        ("", "100", 0.0),
        ("", "", 1.0),
    ],
)
def test_relaxed_accuracy(prediction: str, reference: str, expected: float) -> None:
    assert relaxed_accuracy(prediction, reference) == expected
