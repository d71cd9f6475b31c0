"""Scores of a set of predictions: one per record and metric, and their means."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from vlmflow.errors import UserError
from vlmflow.evaluation.metrics import find_metric

Prediction = dict[str, Any]
"""One line of predictions.jsonl: id, category, images, question, reference, prediction, scores."""


def score_predictions(predictions: list[Prediction], metrics: list[str]) -> tuple[list[Prediction], dict[str, Any]]:
    """The predictions with ``scores`` filled in, and what scores.json says of them: n, metrics, categories.

    The order of ``metrics`` is kept; the first is the headline. Records without a category count in the means only.
    Raises :class:`UserError` for an empty set, an unknown metric, an answer or a reference that is not text.
    """
    if not predictions:
        raise UserError("nothing was evaluated: the evaluation set is empty", "check its split and limit")
    if not metrics:
        raise UserError("no metric is named", "name at least one, for example exact_match", field="metrics")
    functions = {name: find_metric(name) for name in metrics}
    scored = []
    for line in predictions:
        prediction, reference = _text(line, "prediction"), _text(line, "reference")
        scores = {name: function(prediction, reference) for name, function in functions.items()}
        scored.append({**line, "scores": scores})
    return scored, aggregate(scored, metrics)


def aggregate(scored: list[Prediction], metrics: list[str]) -> dict[str, Any]:
    """n, mean of each metric, and both per category in the order of first appearance."""
    categories: dict[str, list[Prediction]] = defaultdict(list)
    for line in scored:
        if line.get("category") is not None:
            categories[line["category"]].append(line)
    return {
        "n": len(scored),
        "metrics": _means(scored, metrics),
        "categories": {name: {"n": len(lines), **_means(lines, metrics)} for name, lines in categories.items()},
    }


def _means(scored: list[Prediction], metrics: Iterable[str]) -> dict[str, float]:
    return {name: sum(line["scores"][name] for line in scored) / len(scored) for name in metrics}


def _text(line: Prediction, field: str) -> str:
    value = line.get(field)
    if not isinstance(value, str):
        state = "missing" if value is None else f"{type(value).__name__} instead of text"
        raise UserError(f"{field} is {state}", "every evaluated record needs one", record=line.get("id"), field=field)
    return value
