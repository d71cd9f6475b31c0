from typing import Any

import pytest

from vlmflow.errors import UserError
from vlmflow.evaluation.scores import score_predictions


def line(name: str, prediction: Any, reference: Any, category: str | None = None) -> dict[str, Any]:
    return {"id": name, "category": category, "prediction": prediction, "reference": reference}


def test_scores_means_and_categories() -> None:
    lines = [
        line("a", "Seven.", "seven", "which"),
        line("b", "an odd one", "odd", "parity"),
        line("c", "x", "y", "which"),
    ]
    scored, found = score_predictions(lines, ["exact_match", "contains"])
    assert [entry["scores"] for entry in scored] == [
        {"exact_match": 1.0, "contains": 1.0},
        {"exact_match": 0.0, "contains": 1.0},
        {"exact_match": 0.0, "contains": 0.0},
    ]
    assert "scores" not in lines[0]
    assert found == {
        "n": 3,
        "metrics": {"exact_match": pytest.approx(1 / 3), "contains": pytest.approx(2 / 3)},
        "categories": {
            "which": {"n": 2, "exact_match": 0.5, "contains": 0.5},
            "parity": {"n": 1, "exact_match": 0.0, "contains": 1.0},
        },
    }


def test_records_without_category_count_in_the_means_only() -> None:
    _, found = score_predictions([line("a", "1", "1"), line("b", "1", "2", "k")], ["exact_match"])
    assert found["metrics"] == {"exact_match": 0.5}
    assert found["categories"] == {"k": {"n": 1, "exact_match": 0.0}}


def test_bad_input_is_refused() -> None:
    with pytest.raises(UserError, match="evaluation set is empty"):
        score_predictions([], ["exact_match"])
    with pytest.raises(UserError, match="no metric is named"):
        score_predictions([line("a", "1", "1")], [])
    with pytest.raises(UserError, match="record a, field reference: reference is missing"):
        score_predictions([line("a", "1", None)], ["exact_match"])
    with pytest.raises(UserError, match="prediction is int instead of text"):
        score_predictions([line("a", 1, "1")], ["exact_match"])
