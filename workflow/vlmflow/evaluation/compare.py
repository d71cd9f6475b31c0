"""Before against after on the same records: differences with intervals, tests, categories, and what got worse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vlmflow.errors import UserError
from vlmflow.evaluation.metrics import NAMES, is_perfect, lower_is_better, perfect, unit
from vlmflow.evaluation.runs import EvaluationRuns, Run, evaluation_runs, load_files, load_runs
from vlmflow.evaluation.scores import Prediction
from vlmflow.evaluation.statistics import difference_interval, holm_adjusted, mean_interval, paired_test
from vlmflow.evaluation.summary import OWN, gain, markdown
from vlmflow.evaluation.tidy import tidy_csv
from vlmflow.files import read_json, write_json, write_text

__all__ = ["EvaluationRuns", "Run", "compare", "compare_checkpoints", "compare_files", "evaluation_runs", "load_runs",
           "measure", "outcome"]  # fmt: skip

_HEADLINE = ("evaluation", "metric", "better", "unit", "before", "after", "difference", "ci95", "p_value", "test", "n",
             "pictures", "wins", "losses", "ties")  # fmt: skip

Found = dict[str, Any]


def compare_checkpoints(experiment: dict[str, Any], evaluations: dict[str, Any], output: Path) -> None:
    """:func:`compare`, with the evaluations as the script takes them."""
    compare(experiment, evaluation_runs(evaluations), output)


def compare(experiment: dict[str, Any], evaluations: list[EvaluationRuns], output: Path) -> None:
    """Write ``output`` (comparison.json) and, beside it, comparison.md (to paste) and comparison.csv (to compute with).

    ``experiment`` is copied into the file; the first evaluation that is not ``general``, and its first metric,
    are the headline. Raises :class:`UserError` when the runs of an evaluation do not hold the same records.
    """
    if not evaluations:
        raise UserError("no evaluation to compare", "name one in the experiment", field="evaluations")
    _write(experiment, [_compare_evaluation(runs) for runs in evaluations], output)


def compare_files(
    before: Path, after: Path, output: Path, metrics: list[str] | None = None, labels: tuple[str, str] | None = None
) -> None:
    """The same of two loose predictions.jsonl, paired by id; the systems are called ``labels``, or as the files.

    Scores that the lines have are taken, other ``metrics`` computed; without ``metrics``, all that both files have,
    those of this project first, or exact_match. A metric that is not of this project counts as higher is better.
    """
    names = labels or (str(before), str(after))
    runs = load_files(before, after, metrics)
    order = metrics or sorted(runs[0].metrics, key=lambda name: name not in NAMES)
    first, second = (replace(run, checkpoint=name, metrics=order) for run, name in zip(runs, names, strict=True))
    found = _compare_systems("predictions", first, second, dict(zip(names, (first, second), strict=True)))
    _write({"name": Path(names[1]).stem, "title": " -> ".join(names)}, [found], output)


def outcome(before: float, after: float, metric: str) -> str:
    """``worse``, ``improved``, or for equal scores ``right`` (both perfect) or ``still_wrong``."""
    if after != before:
        return "improved" if (after > before) == (measure(metric)["better"] == "higher") else "worse"
    return "right" if is_right(after, metric) else "still_wrong"


def is_right(score: float, metric: str) -> bool:
    """Whether a score is the best that its metric gives; those of other tools are taken to end at 1."""
    return is_perfect(metric, score) if metric in NAMES else score >= 1


def measure(metric: str) -> dict[str, str]:
    """``better`` (``higher`` or ``lower``) and ``unit`` of a metric; one of another tool has its own unit."""
    if metric not in NAMES:
        return {"better": "higher", "unit": OWN}
    return {"better": "lower" if lower_is_better(metric) else "higher", "unit": unit(metric)}


def picture_of(prediction: Prediction) -> str:
    """What makes records dependent: their first picture; a record without pictures stands alone."""
    return prediction["images"][0] if prediction.get("images") else f"record {prediction['id']}"


def _write(experiment: dict[str, Any], compared: list[Found], output: Path) -> None:
    first = next((found for found in compared if not found["general"]), compared[0])
    headline = {key: first[key] for key in _HEADLINE}
    comparison = {"experiment": experiment, "headline": headline, "evaluations": compared}
    write_json(output, comparison)
    write_text(output.with_suffix(".md"), markdown(comparison))
    write_text(output.with_suffix(".csv"), tidy_csv(comparison))


def _compare_evaluation(runs: EvaluationRuns) -> Found:
    loaded = load_runs(runs)
    found = _compare_systems(runs.name, loaded["before"], loaded["after"], loaded)
    found["systems"] += _baselines(runs.baselines, found["metric"], found["n"])
    return {**found, "general": runs.general, "parity": read_json(runs.parity) if runs.parity else None}


def _compare_systems(evaluation: str, before: Run, after: Run, systems: dict[str, Run]) -> Found:
    """Everything about one evaluation; its first metric is the headline, and the one of categories and records."""
    metric, pictures = after.metrics[0], {name: picture_of(line) for name, line in before.predictions.items()}
    ids = list(pictures)
    members: dict[str, list[str]] = {}
    for name, prediction in before.predictions.items():
        if prediction.get("category") is not None:
            members.setdefault(prediction["category"], []).append(name)
    metrics = [_paired(before, after, name, ids, pictures) for name in after.metrics]
    categories = {name: _paired(before, after, metric, inside, pictures) for name, inside in members.items()}
    headline = dict(metrics[0])
    pairs = {
        label: headline if run is before or run is after else _paired(run, after, metric, ids, pictures)
        for label, run in systems.items()
    }
    _adjust(metrics)
    _adjust(list(categories.values()))
    return {
        "evaluation": evaluation,
        "general": False,
        "parity": None,
        **headline,
        **_records(before, after, headline, ids),
        "worse_categories": sorted(
            (name for name, found in categories.items() if gain(found) < 0), key=lambda name: gain(categories[name])
        ),
        "metrics": metrics,
        "categories": categories,
        "systems": [_system(label, run, run is after, members, pairs[label]) for label, run in systems.items()],
    }


def _paired(before: Run, after: Run, metric: str, ids: list[str], pictures: dict[str, str]) -> Found:
    """Difference after - before of one metric over ``ids``; wins and losses follow the direction of the metric."""
    first, second = before.scores(metric, ids), after.scores(metric, ids)
    difference, groups = second - first, [pictures[name] for name in ids]
    p_value, test = paired_test(difference, groups)
    measured = measure(metric)
    gains = difference if measured["better"] == "higher" else -difference
    scale = max(1.0, perfect(metric)) if metric in NAMES else 1.0
    return {
        "metric": metric,
        **measured,
        "before": float(first.mean()),
        "after": float(second.mean()),
        "difference": float(difference.mean()),
        "ci95": difference_interval(difference, groups, scale),
        "p_value": p_value,
        "test": test,
        "n": len(ids),
        "pictures": len(set(groups)),
        "wins": int((gains > 0).sum()),
        "losses": int((gains < 0).sum()),
        "ties": int((gains == 0).sum()),
        "before_ci95": mean_interval(first, groups, scale),
        "after_ci95": mean_interval(second, groups, scale),
    }


def _adjust(family: list[Found]) -> None:
    """Give each its ``p_holm``: the p-value adjusted for the number of tests in the family."""
    for found, adjusted in zip(family, holm_adjusted([found["p_value"] for found in family]), strict=True):
        found["p_holm"] = adjusted


def _records(before: Run, after: Run, headline: Found, ids: list[str]) -> Found:
    """``regressions``, the records that got worse, largest loss first; ``records``: the others by outcome."""
    metric = headline["metric"]
    pairs = dict(zip(ids, zip(before.scores(metric, ids), after.scores(metric, ids), strict=True), strict=True))
    found: dict[str, list[str]] = {"worse": [], "improved": [], "still_wrong": [], "right": []}
    for name, pair in pairs.items():
        found[outcome(*pair, metric)].append(name)
    worst = sorted(found.pop("worse"), key=lambda name: -abs(np.subtract(*pairs[name])))
    found.pop("right")
    return {"regressions": worst, "records": found}


def _system(label: str, run: Run, last: bool, members: dict[str, list[str]], pair: Found) -> Found:
    """One row of the table of systems; ``pair``: the final checkpoint, the ``last``, compared with this one."""
    end = "after" if last else "before"
    return {
        "label": label,
        "checkpoint": run.checkpoint,
        "n": pair["n"],
        "value": pair[end],
        "ci95": pair[f"{end}_ci95"],
        "metrics": {name: float(run.scores(name, run.predictions).mean()) for name in run.metrics},
        "categories": {name: float(run.scores(pair["metric"], inside).mean()) for name, inside in members.items()},
        "after_minus_this": None if last else pair,
    }


def _baselines(file: Path | None, metric: str, n: int) -> list[Found]:
    """The rows of the baselines; one that does not apply (no pictures, a metric it has no score of) is left out."""
    found: dict[str, Any] = read_json(file) if file else {"n": n}
    if found["n"] != n:
        raise UserError(f"{found['n']} records, but {n} were evaluated", "delete it and run snakemake again", file=file)
    return [
        {
            "label": label,
            "checkpoint": None,
            "n": row["n"],
            "value": row["metrics"][metric],
            "ci95": row["ci95"][metric],
            "metrics": row["metrics"],
            "categories": {name: values[metric] for name, values in row["categories"].items()},
            "after_minus_this": None,
        }
        for label, row in found.items()
        if label != "n" and row and metric in row["metrics"]
    ]
