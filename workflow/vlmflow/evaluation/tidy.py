"""The comparison as one table to compute with: comparison.csv."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

COLUMNS = (
    "evaluation", "general", "metric", "unit", "better", "category", "kind", "system", "checkpoint", "n", "pictures",
    "value", "ci95_low", "ci95_high", "p_value", "p_holm", "wins", "losses", "ties",
)  # fmt: skip


def tidy_csv(comparison: dict[str, Any]) -> str:
    """One line per evaluation, metric, category, and system or difference; UTF-8, commas, a heading.

    ===================  ===============================================================================================
    evaluation, general  name of the evaluation, and whether it is there to show forgetting (``true``, ``false``)
    metric               its name; categories are there for the headline metric, which comes first
    unit                 ``%``: 1 is 100%; empty: without a unit, shown times 100; ``own``: of another tool, as it is
    better               ``higher`` or ``lower``
    category             empty for all records
    kind                 ``score`` (of ``system``) or ``difference`` (of two systems, ``after - before``)
    system, checkpoint   label in the report, and the checkpoint, empty for baselines and differences
    n, pictures          numbers of records, and of different pictures among them
    value                mean score or mean difference, not times 100
    ci95_low, ci95_high  its 95% interval
    p_value              two-sided, of no difference; not adjusted
    p_holm               adjusted for the number of categories, or of metrics, of this evaluation
    wins, losses, ties   records that got better, got worse, have the same score
    ===================  ===============================================================================================

    A cell is empty where there is no such figure.
    """
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for found in comparison["evaluations"]:
        always = {"evaluation": found["evaluation"], "general": str(found["general"]).lower()}
        writer.writerows({**always, **row} for row in _rows(found))
    return stream.getvalue()


def _rows(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for metric in found["metrics"]:
        for system in found["systems"]:
            if metric["metric"] in system["metrics"]:
                yield _score(metric, system, metric["metric"] == found["metric"])
        yield _difference(metric, "after - before")
        if metric["metric"] == found["metric"]:
            others = (row for row in found["systems"] if row["after_minus_this"] and row["label"] != "before")
            yield from (_difference(row["after_minus_this"], f"after - {row['label']}") for row in others)
            yield from _categories(found)


def _categories(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Scores of all systems, and the difference, in each category."""
    for name, category in found["categories"].items():
        for system in found["systems"]:
            if name in system["categories"]:
                row = {**_measure(category), "kind": "score", **_named(system), "value": system["categories"][name]}
                yield {**row, "category": name, **_interval(category.get(f"{system['label']}_ci95"))}
        yield {**_difference(category, "after - before"), "category": name}


def _score(metric: dict[str, Any], system: dict[str, Any], headline: bool) -> dict[str, Any]:
    interval = system["ci95"] if headline else metric.get(f"{system['label']}_ci95")
    row = {**_measure(metric), "kind": "score", **_named(system), "n": system["n"]}
    return {**row, "value": system["metrics"][metric["metric"]], **_interval(interval)}


def _difference(found: dict[str, Any], name: str) -> dict[str, Any]:
    figures = {key: found.get(key, "") for key in ("p_value", "p_holm", "wins", "losses", "ties")}
    row = {**_measure(found), "kind": "difference", "system": name, "value": found["difference"]}
    return {**row, **figures, **_interval(found["ci95"])}


def _measure(found: dict[str, Any]) -> dict[str, Any]:
    return {key: found[key] for key in ("metric", "unit", "better", "n", "pictures")}


def _named(system: dict[str, Any]) -> dict[str, Any]:
    return {"system": system["label"], "checkpoint": system["checkpoint"]}


def _interval(interval: tuple[float, float] | None) -> dict[str, float]:
    return {} if interval is None else {"ci95_low": interval[0], "ci95_high": interval[1]}
