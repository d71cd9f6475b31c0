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


def test_every_accepted_answer_counts() -> None:
    lines = [{**line("a", "puppy", "dog"), "references": ["dog", "puppy"]}, line("b", "puppy", "dog")]
    scored, _ = score_predictions(lines, ["exact_match"])
    assert [entry["scores"]["exact_match"] for entry in scored] == [1.0, 0.0]
    for wrong in ([], "dog", ["dog", None]):
        with pytest.raises(UserError, match="record a, field references: references is no list of texts"):
            score_predictions([{**line("a", "x", "dog"), "references": wrong}], ["exact_match"])


def test_sizes_and_question_reach_the_metrics() -> None:
    box = {**line("a", "[20, 0, 40, 10]", "<box>[[100, 0, 200, 100]]</box>"), "sizes": [[200, 100]]}
    choice = {**line("b", "a dog", "B"), "question": "Which? A. cat B. dog"}
    scored, _ = score_predictions([box, choice], ["iou", "multiple_choice"])
    assert scored[0]["scores"]["iou"] == pytest.approx(1.0)
    assert scored[1]["scores"]["multiple_choice"] == 1.0


def test_traditional_characters_are_simplified_on_request() -> None:
    lines = [line("a", "宮保雞丁", "宫保鸡丁"), line("b", "宫保鸡丁", "宮保雞丁")]
    assert score_predictions(lines, ["exact_match"])[1]["metrics"] == {"exact_match": 0.0}
    scored, found = score_predictions(lines, ["exact_match"], chinese="simplified")
    assert found["metrics"] == {"exact_match": 1.0}
    assert scored[0]["prediction"] == "宮保雞丁"


def test_scores_that_another_stage_made() -> None:
    lines = [line("a", "x", "x", "k"), line("b", "x", "y", "k")]
    scored, found = score_predictions(lines, ["judge", "exact_match"], given={"judge": {"a": 1, "b": 0.5, "c": 0}})
    assert [list(entry["scores"].items()) for entry in scored] == [
        [("judge", 1.0), ("exact_match", 1.0)],
        [("judge", 0.5), ("exact_match", 0.0)],
    ]
    assert found["metrics"] == {"judge": 0.75, "exact_match": 0.5}
    for wrong, state in (({"a": 1}, "missing"), ({"a": 1, "b": float("nan")}, "nan, no score")):
        with pytest.raises(UserError, match=f"record b, field judge: judge is {state}"):
            score_predictions(lines, ["judge"], given={"judge": wrong})
    with pytest.raises(UserError, match="'judge' are made by another stage"):
        score_predictions(lines, ["judge"])
