"""Before against after on the same records: differences with intervals, tests, categories, and what got worse."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vlmflow.errors import UserError
from vlmflow.evaluation.scores import Prediction
from vlmflow.evaluation.statistics import Array, bootstrap_interval, mean_interval, paired_test
from vlmflow.evaluation.summary import markdown
from vlmflow.files import read_json, write_json, write_text

_RERUN = "delete {} and run snakemake again"
_HEADLINE = ("evaluation", "metric", "before", "after", "difference", "ci95", "p_value", "test", "n", "pictures",
             "wins", "losses", "ties")  # fmt: skip
_NAMED = 5  # ids that an error message names


@dataclass
class EvaluationRuns:
    """The runs of one evaluation: directories that hold predictions.jsonl and scores.json.

    ``others`` maps a label (``pretrained``, ``blind``, ...) to a directory; ``baselines`` is the file that
    :func:`vlmflow.evaluation.baselines.evaluate_baselines` writes.
    """

    name: str
    before: Path
    after: Path
    others: dict[str, Path] = field(default_factory=dict)
    baselines: Path | None = None

    def __post_init__(self) -> None:
        """Accept plain strings, as they come from a command line."""
        self.before, self.after = Path(self.before), Path(self.after)
        self.others = {label: Path(path) for label, path in self.others.items()}
        self.baselines = Path(self.baselines) if self.baselines else None

    def directories(self) -> dict[str, Path]:
        """Label -> directory, in the order of training; blind runs last."""
        blind = {label: path for label, path in self.others.items() if label.startswith("blind")}
        between = {label: path for label, path in self.others.items() if label not in blind}
        return {"before": self.before, **between, "after": self.after, **blind}


@dataclass(frozen=True)
class Run:
    """The scored predictions of one checkpoint on one evaluation, by record id."""

    file: Path
    checkpoint: str
    metrics: list[str]
    predictions: dict[str, Prediction]

    def scores(self, metric: str, ids: Iterable[str]) -> Array:
        return np.array([self.predictions[name]["scores"][metric] for name in ids], dtype=np.float64)


def compare(experiment: dict[str, Any], evaluations: list[EvaluationRuns], output: Path) -> None:
    """Write ``output`` (comparison.json) and, beside it, comparison.md with the tables to paste.

    ``experiment`` is copied into the file; the first evaluation and its first metric are the headline. Raises
    :class:`UserError` when the runs of an evaluation do not hold the same records.
    """
    if not evaluations:
        raise UserError("no evaluation to compare", "name one in the experiment", field="evaluations")
    compared = [_compare_runs(runs) for runs in evaluations]
    comparison = {
        "experiment": experiment,
        "headline": {key: compared[0][key] for key in _HEADLINE},
        "evaluations": compared,
    }
    write_json(output, comparison)
    write_text(output.with_suffix(".md"), markdown(comparison))


def compare_checkpoints(experiment: dict[str, Any], evaluations: dict[str, Any], output: Path) -> None:
    """:func:`compare`, with the evaluations as the script takes them."""
    compare(experiment, evaluation_runs(evaluations), output)


def evaluation_runs(evaluations: dict[str, Any]) -> list[EvaluationRuns]:
    """From a name -> {before, after, others, baselines} mapping of paths."""
    return [EvaluationRuns(name=name, **runs) for name, runs in evaluations.items()]


def load_runs(runs: EvaluationRuns) -> dict[str, Run]:
    """Every run of an evaluation by label, checked to be about the same records; ``before`` comes first."""
    loaded = {label: _load_run(runs.name, directory) for label, directory in runs.directories().items()}
    for run in loaded.values():
        _check_same_records(loaded["before"], run)
    return loaded


def outcome(before: float, after: float) -> str:
    """``worse``, ``improved``, or for equal scores ``right`` (both perfect) or ``still_wrong``."""
    if after != before:
        return "worse" if after < before else "improved"
    return "right" if after >= 1 else "still_wrong"


def _load_run(evaluation: str, directory: Path) -> Run:
    scores, file = read_json(directory / "scores.json"), directory / "predictions.jsonl"
    again = _RERUN.format(directory)
    for key, expected in (("evaluation", evaluation), ("checkpoint", directory.name)):
        if scores.get(key, expected) != expected:
            raise UserError(
                f"{key} is '{scores.get(key)}', expected '{expected}'", again, file=directory / "scores.json"
            )
    predictions: dict[str, Prediction] = {}
    for number, line in enumerate(_lines(file), 1):
        try:
            prediction = json.loads(line)
            name = prediction["id"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"line {number} is not a prediction: {error}", again, file=file) from None
        if name in predictions:
            raise UserError("the record is there twice", again, file=file, record=name)
        predictions[name] = prediction
    if len(predictions) != scores["n"]:
        raise UserError(f"{len(predictions)} records, but scores.json counts {scores['n']}", again, file=file)
    return Run(file, scores["checkpoint"], list(scores["metrics"]), predictions)


def _lines(file: Path) -> list[str]:
    try:
        return [line for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
    except FileNotFoundError:
        raise UserError("no such file", _RERUN.format(file.parent), file=file) from None
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8: {error}", _RERUN.format(file.parent), file=file) from None


def _check_same_records(first: Run, other: Run) -> None:
    """Ids, questions and references of two runs must agree; the pictures of a blind run need not."""
    missing = [name for name in first.predictions if name not in other.predictions]
    extra = [name for name in other.predictions if name not in first.predictions]
    again = _RERUN.format(f"{first.file.parent} and {other.file.parent}")
    if missing or extra:
        parts = [f"{len(missing)} records are missing ({_names(missing)})"] if missing else []
        parts += [f"{len(extra)} are not in it ({_names(extra)})"] if extra else []
        raise UserError(f"compared with {first.file}: {', '.join(parts)}", again, file=other.file)
    for name, prediction in first.predictions.items():
        for key in ("question", "reference"):
            if prediction.get(key) != other.predictions[name].get(key):
                raise UserError(f"{key} differs from {first.file}", again, file=other.file, record=name, field=key)
    if other.metrics != first.metrics:
        raise UserError(f"metrics {other.metrics} instead of {first.metrics}", again, file=other.file)


def _names(ids: Iterable[str]) -> str:
    found = list(ids)
    return ", ".join(found[:_NAMED]) + (", ..." if len(found) > _NAMED else "")


def _compare_runs(runs: EvaluationRuns) -> dict[str, Any]:
    loaded = load_runs(runs)
    before, after = loaded["before"], loaded["after"]
    metric, ids = after.metrics[0], list(before.predictions)
    pictures = {name: picture_of(prediction) for name, prediction in before.predictions.items()}
    categories: dict[str, list[str]] = {}
    for name, prediction in before.predictions.items():
        if prediction.get("category") is not None:
            categories.setdefault(prediction["category"], []).append(name)
    records: dict[str, list[str]] = {"worse": [], "improved": [], "still_wrong": []}
    for name, *pair in zip(ids, before.scores(metric, ids), after.scores(metric, ids), strict=True):
        records.setdefault(outcome(*pair), []).append(name)
    records.pop("right", None)
    return {
        "evaluation": runs.name,
        **_paired(before, after, metric, ids, pictures),
        "metrics": [_paired(before, after, name, ids, pictures) for name in after.metrics],
        "categories": {
            category: _paired(before, after, metric, members, pictures) for category, members in categories.items()
        },
        "systems": [
            *(_system(label, run, after, categories, pictures) for label, run in loaded.items()),
            *_baselines(runs.baselines, metric, len(ids)),
        ],
        "records": records,
    }


def picture_of(prediction: Prediction) -> str:
    """What makes records dependent: their first picture; a record without pictures stands alone."""
    return prediction["images"][0] if prediction.get("images") else f"record {prediction['id']}"


def _paired(before: Run, after: Run, metric: str, ids: list[str], pictures: dict[str, str]) -> dict[str, Any]:
    """Difference after - before of one metric over ``ids``, in units of the metric."""
    first, second = before.scores(metric, ids), after.scores(metric, ids)
    difference, groups = second - first, [pictures[name] for name in ids]
    p_value, test = paired_test(difference, groups)
    return {
        "metric": metric,
        "before": float(first.mean()),
        "after": float(second.mean()),
        "difference": float(difference.mean()),
        "ci95": bootstrap_interval(difference, groups),
        "p_value": p_value,
        "test": test,
        "n": len(ids),
        "pictures": len(set(groups)),
        "wins": int((difference > 0).sum()),
        "losses": int((difference < 0).sum()),
        "ties": int((difference == 0).sum()),
        "before_ci95": mean_interval(first, groups),
        "after_ci95": mean_interval(second, groups),
    }


def _system(
    label: str, run: Run, after: Run, categories: dict[str, list[str]], pictures: dict[str, str]
) -> dict[str, Any]:
    """One row of the table of systems; ``after_minus_this`` is the paired difference to the final checkpoint."""
    metric, ids = after.metrics[0], list(pictures)
    scores = run.scores(metric, ids)
    return {
        "label": label,
        "checkpoint": run.checkpoint,
        "n": len(ids),
        "value": float(scores.mean()),
        "ci95": mean_interval(scores, [pictures[name] for name in ids]),
        "categories": {name: float(run.scores(metric, members).mean()) for name, members in categories.items()},
        "after_minus_this": None if run is after else _paired(run, after, metric, ids, pictures),
    }


def _baselines(file: Path | None, metric: str, n: int) -> list[dict[str, Any]]:
    """The rows of the baselines; one that does not apply (no pictures) is left out."""
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
            "categories": {name: values[metric] for name, values in row["categories"].items()},
            "after_minus_this": None,
        }
        for label, row in found.items()
        if label != "n" and row
    ]
