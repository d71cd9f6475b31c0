"""Whether a configuration says who judges, where somebody shall."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

METRIC = "judge"


def judge_contradictions(config: dict[str, Any]) -> Iterator[str]:
    """Evaluations with the metric and no judge, or with a judge and no such metric."""
    for name, node in config["evaluations"].items():
        asked, described = METRIC in node["metrics"], "judge" in node
        if asked and not described:
            yield f"evaluations.{name}.metrics: '{METRIC}' needs the key 'judge', with `endpoint` and `model`"
        if described and not asked:
            yield f"evaluations.{name}.judge: nothing is judged, as 'metrics' does not name '{METRIC}'"
