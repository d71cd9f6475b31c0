"""Before against after on the same records: differences with intervals, tests, categories, and what got worse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vlmflow.errors import UserError
from vlmflow.evaluation.metrics import NAMES, lower_is_better, unit
from vlmflow.evaluation.runs import EvaluationRuns, Run, evaluation_runs, load_files, load_runs
from vlmflow.evaluation.scores import Prediction
from vlmflow.evaluation.statistics import difference_interval, holm_adjusted, mean_interval, paired_test
from vlmflow.evaluation.summary import gain, markdown
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

    ``experiment`` is copied into the file; the first evaluation and its first metric are the headline. Raises
    :class:`UserError` when the runs of an evaluation do not hold the same records.
    """
    if not evaluations:
        raise UserError("no evaluation to compare", "name one in the experiment", field="evaluations")
    _write(experiment, [_compare_evaluation(runs) for runs in evaluations], output)


def compare_files(before: Path, after: Path, output: Path, metrics: list[str] | None = None) -> None:
    """The same of two loose predictions.jsonl, paired by id; the systems are called by the names of the files.

    Scores that the lines have are taken, other ``metrics`` computed; without ``metrics``, all that both files have, or
    exact_match. A metric that is not of this project counts as higher is better.
    """
    first, second = load_files(before, after, metrics)
    labelled = {str(before): first, str(after): second}
    found = _compare_systems("predictions", first, second, labelled)
    _write({"name": after.stem, "title": f"{before} -> {after}"}, [found], output)


def outcome(before: float, after: float, better: str = "higher") -> str:
    """``worse``, ``improved``, or for equal scores ``right`` (both perfect) or ``still_wrong``.

    ``better``: ``higher`` (1 is perfect) or ``lower`` (0 is).
    """
    if after != before:
        return "improved" if (after > before) == (better == "higher") else "worse"
    return "right" if (after >= 1 if better == "higher" else after <= 0) else "still_wrong"


def measure(metric: str) -> dict[str, str]:
    """``better`` (``higher`` or ``lower``) and ``unit`` of a metric; those of other tools are taken for scores."""
    if metric not in NAMES:
        return {"better": "higher", "unit": ""}
    return {"better": "lower" if lower_is_better(metric) else "higher", "unit": unit(metric)}


def picture_of(prediction: Prediction) -> str:
    """What makes records dependent: their first picture; a record without pictures stands alone."""
    return prediction["images"][0] if prediction.get("images") else f"record {prediction['id']}"


def _write(experiment: dict[str, Any], compared: list[Found], output: Path) -> None:
    headline = {key: compared[0][key] for key in _HEADLINE}
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
        "systems": [_system(label, run, after, members, pictures) for label, run in systems.items()],
    }


def _paired(before: Run, after: Run, metric: str, ids: list[str], pictures: dict[str, str]) -> Found:
    """Difference after - before of one metric over ``ids``; wins and losses follow the direction of the metric."""
    first, second = before.scores(metric, ids), after.scores(metric, ids)
    difference, groups = second - first, [pictures[name] for name in ids]
    p_value, test = paired_test(difference, groups)
    measured = measure(metric)
    gains = difference if measured["better"] == "higher" else -difference
    return {
        "metric": metric,
        **measured,
        "before": float(first.mean()),
        "after": float(second.mean()),
        "difference": float(difference.mean()),
        "ci95": difference_interval(difference, groups),
        "p_value": p_value,
        "test": test,
        "n": len(ids),
        "pictures": len(set(groups)),
        "wins": int((gains > 0).sum()),
        "losses": int((gains < 0).sum()),
        "ties": int((gains == 0).sum()),
        "before_ci95": mean_interval(first, groups),
        "after_ci95": mean_interval(second, groups),
    }


def _adjust(family: list[Found]) -> None:
    """Give each its ``p_holm``: the p-value adjusted for the number of tests in the family."""
    for found, adjusted in zip(family, holm_adjusted([found["p_value"] for found in family]), strict=True):
        found["p_holm"] = adjusted


def _records(before: Run, after: Run, headline: Found, ids: list[str]) -> Found:
    """``regressions``, the records that got worse, largest loss first; ``records``: the others by outcome."""
    metric, better = headline["metric"], headline["better"]
    pairs = dict(zip(ids, zip(before.scores(metric, ids), after.scores(metric, ids), strict=True), strict=True))
    found: dict[str, list[str]] = {"worse": [], "improved": [], "still_wrong": [], "right": []}
    for name, pair in pairs.items():
        found[outcome(*pair, better)].append(name)
    worst = sorted(found.pop("worse"), key=lambda name: -abs(np.subtract(*pairs[name])))
    found.pop("right")
    return {"regressions": worst, "records": found}


def _system(label: str, run: Run, after: Run, members: dict[str, list[str]], pictures: dict[str, str]) -> Found:
    """One row of the table of systems; ``after_minus_this`` is the paired difference to the final checkpoint."""
    metric, ids = after.metrics[0], list(pictures)
    scores = run.scores(metric, ids)
    return {
        "label": label,
        "checkpoint": run.checkpoint,
        "n": len(ids),
        "value": float(scores.mean()),
        "ci95": mean_interval(scores, [pictures[name] for name in ids]),
        "metrics": {name: float(run.scores(name, ids).mean()) for name in run.metrics},
        "categories": {name: float(run.scores(metric, inside).mean()) for name, inside in members.items()},
        "after_minus_this": None if run is after else _paired(run, after, metric, ids, pictures),
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
