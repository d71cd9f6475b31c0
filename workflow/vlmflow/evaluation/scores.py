"""Scores of a set of predictions: one per record and metric, and their means."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from vlmflow.errors import UserError
from vlmflow.evaluation.metrics import Item, find_metric
from vlmflow.evaluation.metrics.text import simplifier, valid

Prediction = dict[str, Any]
"""One line of predictions.jsonl: id, category, images, sizes, question, reference, references, prediction, scores."""

Given = Mapping[str, Mapping[str, float]]
"""Metric -> record id -> score, of metrics that another stage made."""


def score_predictions(
    predictions: list[Prediction], metrics: list[str], chinese: str = "keep", given: Given | None = None
) -> tuple[list[Prediction], dict[str, Any]]:
    """The predictions with ``scores`` filled in, and what scores.json says of them: n, metrics, categories.

    The order of ``metrics`` is kept; the first is the headline. ``chinese: simplified`` turns traditional characters of
    answers, references and questions into simplified ones for the metrics alone. Metrics in ``given`` are taken from
    there. Records without a category count in the means only. Raises :class:`UserError` for an empty set, an unknown
    metric, an answer or a reference that is not text, a record without a given score.
    """
    if not predictions:
        raise UserError("nothing was evaluated: the evaluation set is empty", "check its split and limit")
    if not metrics:
        raise UserError("no metric is named", "name at least one, for example exact_match", field="metrics")
    given = given or {}
    scorers = {name: find_metric(name).score for name in metrics if name not in given}
    items = _items(predictions, simplifier() if chinese == "simplified" else str)
    computed = {name: score(items) for name, score in scorers.items()}
    columns = {name: _given(given[name], name, predictions) if name in given else computed[name] for name in metrics}
    scored = [
        {**line, "scores": {name: column[place] for name, column in columns.items()}}
        for place, line in enumerate(predictions)
    ]
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


def _items(predictions: list[Prediction], convert: Callable[[str], str]) -> list[Item]:
    """What the metrics see of each line."""

    def item(line: Prediction) -> Item:
        texts = [_text(line, "prediction"), *_references(line)]
        prediction, *references = (convert(valid(text)) for text in texts)
        sizes = tuple((width, height) for width, height in line.get("sizes") or ())
        return Item(prediction, tuple(references), sizes, convert(valid(line.get("question") or "")))

    return [item(line) for line in predictions]


def _references(line: Prediction) -> list[str]:
    """All right answers, the record's own first."""
    reference, listed = _text(line, "reference"), line.get("references")
    if listed is None:
        return [reference]
    if not isinstance(listed, list) or not listed or not all(isinstance(text, str) for text in listed):
        raise _unusable(line, "references", "no list of texts")
    return listed


def _text(line: Prediction, field: str) -> str:
    value = line.get(field)
    if not isinstance(value, str):
        raise _unusable(line, field, "missing" if value is None else f"{type(value).__name__} instead of text")
    return value


def _given(scores: Mapping[str, float], metric: str, predictions: list[Prediction]) -> list[float]:
    found = [scores.get(line["id"]) for line in predictions]
    for line, score in zip(predictions, found, strict=True):
        if not isinstance(score, int | float) or not math.isfinite(score):
            raise _unusable(line, metric, "missing" if score is None else f"{score!r}, no score")
    return [float(score) for score in found if score is not None]


def _unusable(line: Prediction, field: str, state: str) -> UserError:
    return UserError(f"{field} is {state}", "every evaluated record needs one", record=line.get("id"), field=field)
