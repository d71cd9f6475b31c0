"""The runs of an evaluation as the comparison reads them, checked to be whole and about the same records."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vlmflow.errors import UserError
from vlmflow.evaluation.scores import Prediction, score_predictions
from vlmflow.evaluation.statistics import Array
from vlmflow.files import read_json

_RERUN = "delete {} and run snakemake again"
_NAMED = 5  # ids that an error message names
_WITHOUT_PICTURES = ("blind", "blank")
_BETWEEN = ("pretrained", "adapter", "merged")


@dataclass
class EvaluationRuns:
    """The runs of one evaluation: directories that hold predictions.jsonl and scores.json.

    ``others`` maps a label (``pretrained``, ``blind``, ...) to a directory; ``baselines`` is the file that
    :func:`vlmflow.evaluation.baselines.evaluate_baselines` writes, ``parity`` that of
    :func:`vlmflow.evaluation.parity.check_parity`. ``general``: the questions are not what was trained, so that a loss
    means forgetting.
    """

    name: str
    before: Path
    after: Path
    others: dict[str, Path] = field(default_factory=dict)
    baselines: Path | None = None
    general: bool = False
    parity: Path | None = None

    def __post_init__(self) -> None:
        """Accept plain strings, as they come from a command line."""
        self.before, self.after = Path(self.before), Path(self.after)
        self.others = {label: Path(path) for label, path in self.others.items()}
        self.baselines = Path(self.baselines) if self.baselines else None
        self.parity = Path(self.parity) if self.parity else None

    def directories(self) -> dict[str, Path]:
        """Label -> directory, in the order of training; runs without the right pictures last."""
        last = {label: path for label, path in self.others.items() if label.startswith(_WITHOUT_PICTURES)}
        known = [label for label in _BETWEEN if label in self.others]
        between = {label: self.others[label] for label in (*known, *self.others) if label not in last}
        return {"before": self.before, **between, "after": self.after, **last}


@dataclass(frozen=True)
class Run:
    """The scored predictions of one checkpoint on one evaluation, by record id."""

    file: Path
    checkpoint: str
    metrics: list[str]
    predictions: dict[str, Prediction]
    data: str | None = None
    """Hash of the data set's manifest, where known."""

    def scores(self, metric: str, ids: Iterable[str]) -> Array:
        return np.array([self.predictions[name]["scores"][metric] for name in ids], dtype=np.float64)


def evaluation_runs(evaluations: dict[str, Any]) -> list[EvaluationRuns]:
    """From a name -> {before, after, others, baselines, general, parity} mapping."""
    return [EvaluationRuns(name=name, **runs) for name, runs in evaluations.items()]


def load_runs(runs: EvaluationRuns) -> dict[str, Run]:
    """Every run of an evaluation by label, checked to be about the same records; ``before`` comes first."""
    loaded = {label: _load_run(runs.name, directory) for label, directory in runs.directories().items()}
    for run in loaded.values():
        check_alike(loaded["before"], run, _RERUN.format(f"{loaded['before'].file.parent} and {run.file.parent}"))
    return loaded


def load_files(before: Path, after: Path, metrics: list[str] | None = None) -> tuple[Run, Run]:
    """Two loose predictions.jsonl with scores of the same metrics; what is not in their lines is computed.

    Without ``metrics``: those that all lines of both have, or exact_match.
    """
    advice = "give two files of predictions of the same records, one JSON object a line"
    files = [(file, read_predictions(file, advice)) for file in (before, after)]
    if before.resolve() == after.resolve():
        raise UserError("before and after are the same file", advice, file=after)
    scored = [[_scores_of(line) for line in lines.values()] for _, lines in files]
    there = [name for name in scored[0][0] if all(name in scores for lines in scored for scores in lines)]
    wanted = metrics or there or ["exact_match"]
    first, second = (_with_scores(file, lines, wanted, there, advice) for file, lines in files)
    check_alike(first, second, advice)
    return first, second


def read_predictions(file: Path, advice: str) -> dict[str, Prediction]:
    """The lines of a predictions.jsonl by record id; :class:`UserError` with ``advice`` for a torn or doubled one."""
    predictions: dict[str, Prediction] = {}
    for number, line in enumerate(_lines(file, advice), 1):
        try:
            prediction = json.loads(line)
            name = prediction["id"]
            if not isinstance(name, str | int):
                raise TypeError(f"its id is {name}")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"line {number} is not a prediction: {error}", advice, file=file) from None
        if str(name) in predictions:
            raise UserError("the record is there twice", advice, file=file, record=str(name))
        predictions[str(name)] = {**prediction, "id": str(name)}
    if not predictions:
        raise UserError("no predictions: the evaluation set is empty", advice, file=file)
    return predictions


def check_scores(run: Run, advice: str) -> None:
    """:class:`UserError` unless every prediction has a finite score of every metric."""
    for name, prediction in run.predictions.items():
        for metric in run.metrics:
            score = _scores_of(prediction).get(metric)
            if not isinstance(score, int | float) or not math.isfinite(score):
                state = "missing" if score is None else f"{score}, no finite number"
                raise UserError(f"the score is {state}", advice, file=run.file, record=name, field=f"scores.{metric}")


def check_alike(first: Run, other: Run, advice: str) -> None:
    """Data, ids, questions, references and metrics of two runs must agree; the pictures of a blind run need not."""
    if None not in (first.data, other.data) and first.data != other.data:
        raise UserError(f"made with other data than {first.file}", advice, file=other.file)
    missing = [name for name in first.predictions if name not in other.predictions]
    extra = [name for name in other.predictions if name not in first.predictions]
    if missing or extra:
        parts = [f"{len(missing)} records are missing ({_names(missing)})"] if missing else []
        parts += [f"{len(extra)} are not in it ({_names(extra)})"] if extra else []
        raise UserError(f"compared with {first.file}: {', '.join(parts)}", advice, file=other.file)
    for name, prediction in first.predictions.items():
        for key in ("question", "reference"):
            if prediction.get(key) != other.predictions[name].get(key):
                raise UserError(f"{key} differs from {first.file}", advice, file=other.file, record=name, field=key)
    if other.metrics != first.metrics:
        raise UserError(f"metrics {other.metrics} instead of {first.metrics}", advice, file=other.file)


def _load_run(evaluation: str, directory: Path) -> Run:
    table, file, again = directory / "scores.json", directory / "predictions.jsonl", _RERUN.format(directory)
    scores = read_json(table)
    if not isinstance(scores, dict) or not isinstance(scores.get("metrics"), dict) or not scores["metrics"]:
        raise UserError("no scores of an evaluation", again, file=table)
    for key, expected in (("evaluation", evaluation), ("checkpoint", directory.name)):
        if scores.get(key, expected) != expected:
            raise UserError(f"{key} is '{scores.get(key)}', expected '{expected}'", again, file=table)
    predictions = read_predictions(file, again)
    if len(predictions) != scores.get("n"):
        raise UserError(f"{len(predictions)} records, but scores.json counts {scores.get('n')}", again, file=file)
    for name, prediction in predictions.items():
        for key in ("question", "reference", "prediction"):
            if not isinstance(prediction.get(key), str):
                raise UserError(f"{key} is missing or no text", again, file=file, record=name, field=key)
    data = scores.get("inputs", {}).get("data")
    run = Run(file, scores.get("checkpoint", directory.name), list(scores["metrics"]), predictions, data)
    check_scores(run, again)
    for metric, mean in scores["metrics"].items():
        found = float(np.mean(run.scores(metric, predictions)))
        if not math.isclose(found, mean, rel_tol=1e-6, abs_tol=1e-9):
            reason = f"mean {metric} is {found:.6g}, but {mean:.6g} in scores.json: they are not of one run"
            raise UserError(reason, again, file=file)
    return run


def _with_scores(file: Path, lines: dict[str, Prediction], wanted: list[str], there: list[str], advice: str) -> Run:
    missing = [name for name in wanted if name not in there]
    if missing:
        try:
            scored, _ = score_predictions(list(lines.values()), missing)
        except UserError as error:
            problem = error.problem
            raise UserError(
                problem.reason, problem.advice, file=file, record=problem.record, field=problem.field
            ) from None
        computed = {line["id"]: line["scores"] for line in scored}
        lines = {name: {**line, "scores": {**_scores_of(line), **computed[name]}} for name, line in lines.items()}
    run = Run(file, str(file), wanted, lines)
    check_scores(run, advice)
    return run


def _scores_of(line: Prediction) -> dict[str, Any]:
    scores = line.get("scores")
    return scores if isinstance(scores, dict) else {}


def _lines(file: Path, advice: str) -> list[str]:
    try:
        return [line for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
    except FileNotFoundError:
        raise UserError("no such file", advice, file=file) from None
    except IsADirectoryError:
        raise UserError("a folder, not a file", "name the predictions.jsonl in it", file=file) from None
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8: {error}", advice, file=file) from None


def _names(ids: Iterable[str]) -> str:
    found = list(ids)
    return ", ".join(found[:_NAMED]) + (", ..." if len(found) > _NAMED else "")
