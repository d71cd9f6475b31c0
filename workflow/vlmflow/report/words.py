"""What only the page says of a comparison: what got worse beyond chance, and what blind runs show."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vlmflow.evaluation import summary
from vlmflow.evaluation.summary import Found

_SIGNIFICANT = 0.05
_INSTEAD = {"blind": "the picture of another record", "blank": "a grey picture"}


def heading(name: str) -> str:
    """The key of a metric as words that begin with a capital letter."""
    words = summary.plain(name)
    return words[:1].upper() + words[1:]


def adjusted_p(found: Found) -> str:
    """The Holm-adjusted p-value, for a column that says so."""
    return summary.p_value(found["p_holm"]).removeprefix("p ").removeprefix("= ")


def engine(facts: dict[str, Any]) -> str:
    """What answered: ``lmdeploy 0.18.0, bfloat16 on cuda``."""
    name = facts["backend"]
    return f"{name} {facts['versions'].get(name, '')}, {facts['dtype']} on {facts['device']}"


def regressions(evaluations: list[Found]) -> list[dict[str, Any]]:
    """What got worse: ``evaluation``, ``what`` (metric or category) and ``found``."""
    return [
        {"evaluation": evaluation["evaluation"], "what": what, "found": found}
        for evaluation in evaluations
        for what, found in _parts(evaluation)
        if got_worse(found)
    ]


def got_worse(found: Found) -> bool:
    """Whether chance does not explain a loss: an interval without zero, and a test, as an interval of few records is
    too short."""
    return summary.verdict(found) == "worse" and found["p_value"] < _SIGNIFICANT


def _parts(evaluation: Found) -> Iterator[tuple[str, Found]]:
    for found in evaluation["metrics"]:
        yield heading(found["metric"]), found
    for category, found in summary.worst_first(evaluation["categories"]):
        yield f"{heading(evaluation['metric'])} of {category}", found


def blind_notes(evaluation: Found) -> list[str]:
    """What the runs with shuffled or blank pictures say of whether the pictures are used."""
    return [
        _blind_note(_INSTEAD[system["label"]], system["after_minus_this"])
        for system in evaluation["systems"]
        if system["label"] in _INSTEAD
    ]


def _blind_note(instead: str, lost: Found) -> str:
    worth = f"Against {instead}, the right one is worth {summary.change(lost)} to the fine-tuned model"
    if summary.verdict(lost) == "better":
        return f"{worth}: it looks at the pictures."
    return f"{worth}: no sign that it looks at the pictures."
