"""The stage between data and training: exact tokens of every record, rendered with the model's own template."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vlmflow.data.records import RecordFile, encode_record
from vlmflow.data.report import kind
from vlmflow.errors import Problem, UserError
from vlmflow.files import read_manifest, staged_directory, write_manifest, write_text
from vlmflow.models.directory import load_processor
from vlmflow.provenance import write_provenance
from vlmflow.tokens.budget import TOO_LONG, Budget, Measured
from vlmflow.tokens.columns import ROW
from vlmflow.tokens.report import summarize, write_report

_log = logging.getLogger(__name__)
_BATCH = 512  # records that the tokenizer gets at a time, which it shares out over the cores
_PRINTED = 20  # records of a kind that the error names; problems.md has all


class _Dataset:
    """Writes the kept records of one data set; remembers what became of the others."""

    def __init__(self, name: str, source: RecordFile, budget: Budget) -> None:
        self.name, self._source, self._budget = name, source, budget
        self.problems: list[Problem] = []
        self.changed: list[dict[str, Any]] = []
        self.needed = 0
        self._rows: list[tuple[int, int, int, int, float]] = []
        self._picture_tokens = 0

    def write(self, folder: Path, index: int) -> None:
        """``<index>.jsonl`` and ``<index>.npy``."""
        with (folder / f"{index}.jsonl").open("wb") as stream:
            records = iter(self._source)
            while batch := list(itertools.islice(records, _BATCH)):
                for measured in self._budget.measure(batch):
                    self._add(measured, stream)
        np.save(folder / f"{index}.npy", np.array(self._rows, ROW))

    def report(self, folder: Path, index: int) -> dict[str, Any]:
        rows, records = np.array(self._rows, ROW), RecordFile(folder / f"{index}.jsonl")
        return summarize(self.name, rows, records, self._picture_tokens, self.changed)

    def _add(self, measured: Measured | Problem, stream: BinaryIO) -> None:
        if isinstance(measured, Problem):
            self._refuse(measured)
            return
        fitted = self._budget.fit(measured)
        if fitted is not measured:
            self.needed = max(self.needed, measured.tokens)
            self.changed.append(_change(measured, fitted))
        if isinstance(fitted, Problem):
            self._refuse(fitted)
            return
        stream.write(encode_record(fitted.record))
        self._picture_tokens += fitted.picture_tokens
        self._rows.append((fitted.tokens, fitted.supervised, fitted.tiles, fitted.tile_limit, fitted.record.repeat))

    def _refuse(self, problem: Problem) -> None:
        self.problems.append(dataclasses.replace(problem, file=self._source.path))


def count_tokens(config: dict[str, Any], model: Path, data: list[Path], output: Path) -> None:
    """Count the tokens of the training records of ``data`` for ``model`` (manifests); ``output`` is a manifest too.

    ``config``: max_length, too_long, max_dropped, datasets (names, in the order of ``data``). Writes, for each data set
    by its index, the records kept (jsonl) and their lengths (npy, :data:`vlmflow.tokens.columns.ROW`). Raises
    :class:`UserError` naming every record that cannot be trained on.
    """
    inputs = {"model": read_manifest(model)["hash"]}
    inputs |= {f"data{index}": read_manifest(manifest)["hash"] for index, manifest in enumerate(data)}
    budget = Budget(load_processor(model), config["max_length"], config["too_long"])
    datasets = [
        _Dataset(name, RecordFile(manifest.parent / "train.jsonl"), budget)
        for name, manifest in zip(config["datasets"], data, strict=True)
    ]
    with staged_directory(output.parent) as directory:
        for index, dataset in enumerate(datasets):
            dataset.write(directory, index)
        _apply_policy(config, datasets, output.parent)
        parts = [dataset.report(directory, index) for index, dataset in enumerate(datasets)]
        write_report(directory, {**config, "datasets": parts})
        write_provenance(directory, config, inputs)
        described = [
            {"name": part["name"], "hash": inputs[f"data{index}"], "records": part["records"]["kept"]}
            for index, part in enumerate(parts)
        ]
        write_manifest(directory, model=inputs["model"], datasets=described)
    for part in parts:
        _log.info("%s: %d records, %d tokens at most", part["name"], part["records"]["kept"], part["tokens"]["max"])


def _change(before: Measured, after: Measured | Problem) -> dict[str, Any]:
    what = "dropped" if isinstance(after, Problem) else "fewer tiles" if after.tile_limit else "fewer turns"
    left = None if isinstance(after, Problem) else after.tokens
    return {"id": before.record.id, "what": what, "tokens": before.tokens, "tokens_after": left}


def _apply_policy(config: dict[str, Any], datasets: Sequence[_Dataset], folder: Path) -> None:
    """Raise unless all that is wrong is length, and no more records are too long than may be left out."""
    problems = [problem for dataset in datasets for problem in dataset.problems]
    kinds = Counter(kind(problem.reason) for problem in problems)
    allowed = 0 if config["too_long"] == "error" else config["max_dropped"]
    if set(kinds) <= {TOO_LONG} and kinds[TOO_LONG] <= allowed:
        return
    write_text(folder / "problems.md", "\n".join(["# Token budget: what stopped the run", "", *_listed(problems), ""]))
    counts = ", ".join(f"{count} {name}" for name, count in kinds.most_common())
    lines = [line for name in kinds for line in _some([p for p in problems if kind(p.reason) == name])]
    reason = "\n  ".join([f"{len(problems)} records cannot be trained on: {counts}", *lines])
    advice = [f"{folder / 'problems.md'} lists all of them"]
    if kinds[TOO_LONG]:
        needed = max(dataset.needed for dataset in datasets)
        may = f" ({allowed} may be left out: max_dropped)" if allowed else ""
        advice.append(f"`max_length: {needed}` takes them all, `too_long` says what else may become of them{may}")
    raise UserError(reason, "; ".join(advice))


def _some(problems: Sequence[Problem]) -> list[str]:
    more = len(problems) - _PRINTED
    return _listed(problems[:_PRINTED]) + ([f"- ... and {more} more"] if more > 0 else [])


def _listed(problems: Sequence[Problem]) -> list[str]:
    return [f"- {dataclasses.replace(problem, advice='')}" for problem in problems]
