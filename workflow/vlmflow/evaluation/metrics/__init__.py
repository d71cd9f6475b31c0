"""Metrics: how right answers are. docs/metrics.md describes each and shows how to add one.

Importing this package imports no library of a metric: the configuration is checked where none is installed.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

from vlmflow.errors import UserError
from vlmflow.evaluation.metrics.register import SCORERS, Item, Scorer

__all__ = [
    "METRICS", "NAMES", "Item", "Metric", "find_metric", "is_computed", "is_perfect", "lower_is_better", "perfect",
    "unit", "unknown_metrics",
]  # fmt: skip


class Listed(NamedTuple):
    """What is known of a metric before its module is imported; ``module`` is None when another stage scores."""

    module: str | None
    better: Literal["higher", "lower"] = "higher"
    unit: Literal["%", ""] = "%"
    """``%``: a share, shown in percent; empty: shown times 100 without a sign."""
    perfect: float = 1.0


METRICS = {
    "exact_match": Listed("vlmflow.evaluation.metrics.matching"),
    "contains": Listed("vlmflow.evaluation.metrics.matching"),
    "vqa_accuracy": Listed("vlmflow.evaluation.metrics.vqa_accuracy"),
    "multiple_choice": Listed("vlmflow.evaluation.metrics.multiple_choice"),
    "relaxed_accuracy": Listed("vlmflow.evaluation.metrics.relaxed_accuracy"),
    "anls": Listed("vlmflow.evaluation.metrics.anls"),
    "cer": Listed("vlmflow.evaluation.metrics.error_rate", "lower", perfect=0.0),
    "wer": Listed("vlmflow.evaluation.metrics.error_rate", "lower", perfect=0.0),
    "rouge_l": Listed("vlmflow.evaluation.metrics.rouge_l"),
    "bleu": Listed("vlmflow.evaluation.metrics.bleu"),
    "chrf": Listed("vlmflow.evaluation.metrics.chrf"),
    "cider": Listed("vlmflow.evaluation.metrics.cider", unit="", perfect=10.0),
    "iou": Listed("vlmflow.evaluation.metrics.grounding"),
    "acc_at_0.5": Listed("vlmflow.evaluation.metrics.grounding"),
    "set_f1": Listed("vlmflow.evaluation.metrics.set_f1"),
    "judge": Listed(None),
}
"""Name -> where it is and how to read it; a metric's module registers a function under the same name."""

NAMES = tuple(METRICS)


class Metric(NamedTuple):
    """A metric: ``score`` takes all items at once, as some need them, and returns one score for each."""

    name: str
    better: Literal["higher", "lower"]
    unit: Literal["%", ""]
    score: Scorer


def find_metric(name: str) -> Metric:
    """The metric called ``name``. Raises :class:`UserError` with the nearest right name, or if it is not computed."""
    listed = _listed(name)
    if listed.module is None:
        raise UserError(
            f"the scores of '{name}' are made by another stage", "name it in an evaluation", field="metrics"
        )
    importlib.import_module(listed.module)
    return Metric(name, listed.better, listed.unit, SCORERS[name])


def is_computed(name: str) -> bool:
    """Whether :func:`find_metric` has it, rather than a stage of its own (``judge``)."""
    return _listed(name).module is not None


def lower_is_better(name: str) -> bool:
    """Whether less is better: error rates."""
    return _listed(name).better == "lower"


def unit(name: str) -> Literal["%", ""]:
    """How a score is shown: times 100, with this sign."""
    return _listed(name).unit


def perfect(name: str) -> float:
    """The best score that an answer can have."""
    return _listed(name).perfect


def is_perfect(name: str, score: float) -> bool:
    """Whether an answer is right: its score cannot be better. Rounding may leave CIDEr a little beside its 10."""
    return abs(score - perfect(name)) < 1e-6


def unknown_metrics(names: Iterable[str]) -> Iterator[str]:
    """What is wrong with the names of metrics in a configuration, one sentence each."""
    for name in names:
        if name not in METRICS:
            yield f"no metric '{name}'; {_advice(name)}"


def _listed(name: str) -> Listed:
    if name not in METRICS:
        raise UserError(f"no metric '{name}'", _advice(name), field="metrics")
    return METRICS[name]


def _advice(name: str) -> str:
    near = difflib.get_close_matches(name, METRICS, n=1)
    return f"did you mean '{near[0]}'?" if near else f"there is {', '.join(METRICS)}"
