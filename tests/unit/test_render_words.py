"""What the page says of a comparison."""

from __future__ import annotations

from typing import Any

import pytest

from vlmflow.report import words


def found(difference: float, low: float, high: float, p_value: float = 0.001, **changed: Any) -> dict[str, Any]:
    """A paired difference."""
    return {"metric": "anls", "better": "higher", "unit": "%", "before": 0.5, "after": 0.5 + difference,
            "difference": difference, "ci95": [low, high], "p_value": p_value, "p_holm": p_value, "n": 90,
            **changed}  # fmt: skip


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (found(-0.2, -0.3, -0.1), True),
        (found(0.2, 0.1, 0.3), False),
        (found(-0.2, -0.3, 0.1), False),
        (found(-1.0, -1.0, -1.0, p_value=1.0), False),  # one record: no test says that
        (found(0.2, 0.1, 0.3, better="lower"), True),
        (found(-0.2, -0.3, -0.1, better="lower"), False),
    ],
)
def test_what_got_worse_is_beyond_chance(row: dict[str, Any], expected: bool) -> None:
    assert words.got_worse(row) is expected


def test_regressions_are_named_worst_first() -> None:
    evaluation = {
        **found(0.1, 0.05, 0.2),
        "evaluation": "held-out",
        "metrics": [found(0.1, 0.05, 0.2), found(0.3, 0.2, 0.4, metric="wer", better="lower")],
        "categories": {"a": found(-0.1, -0.2, -0.05), "b": found(0.5, 0.4, 0.6), "c": found(-0.3, -0.4, -0.2)},
    }
    assert [row["what"] for row in words.regressions([evaluation])] == ["Word error rate", "ANLS of c", "ANLS of a"]


def test_blind_runs_say_whether_the_pictures_are_used() -> None:
    systems = [
        {"label": "after", "after_minus_this": None},
        {"label": "blind", "after_minus_this": found(0.4, 0.3, 0.5)},
        {"label": "blank", "after_minus_this": found(0.01, -0.1, 0.1)},
    ]
    shuffled, blank = words.blind_notes({"systems": systems})
    assert shuffled.startswith("Against the picture of another record, the right one is worth +40.0 points")
    assert shuffled.endswith("it looks at the pictures.")
    assert blank.endswith("no sign that it looks at the pictures.")


def test_small_words() -> None:
    assert [words.heading(name) for name in ("exact_match", "cer", "chrf")] == [
        "Exact match", "Character error rate", "ChrF"
    ]  # fmt: skip
    assert words.adjusted_p(found(0, 0, 0, p_value=0.02)) == "0.02"
    assert words.adjusted_p(found(0, 0, 0, p_value=1e-9)) == "< 0.0001"
    facts = {"backend": "lmdeploy", "dtype": "bfloat16", "device": "cuda", "versions": {"lmdeploy": "0.18.0"}}
    assert words.engine(facts) == "lmdeploy 0.18.0, bfloat16 on cuda"
