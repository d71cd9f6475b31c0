"""The commands `vlmflow import`, `vlmflow compare` and `vlmflow export`."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from vlmflow.errors import Problem, UserError
from vlmflow.field import lmms_eval, vlmevalkit
from vlmflow.field.predictions import is_ours, read_predictions, write_predictions

_FILES = "predictions.jsonl of ours, *_samples_*.jsonl of lmms-eval, or MODEL_TASK.xlsx/.tsv/.json of VLMEvalKit"


def import_main(argv: Sequence[str]) -> None:
    """`vlmflow import FILE --output predictions.jsonl`."""
    parser = argparse.ArgumentParser("vlmflow import", description="Turn a suite's predictions into predictions.jsonl.")
    parser.add_argument("file", type=Path, help=_FILES)
    parser.add_argument("--output", type=Path, required=True, help="predictions.jsonl to write")
    arguments = parser.parse_args(argv)
    _spare([arguments.file], [arguments.output])
    lines = read_predictions(arguments.file)
    write_predictions(arguments.output, lines)
    _show(f"{len(lines)} predictions: {arguments.output}")


def compare_main(argv: Sequence[str]) -> None:
    """`vlmflow compare BEFORE AFTER --output FOLDER`."""
    parser = argparse.ArgumentParser(
        "vlmflow compare", description="Paired statistics of two models' answers to the same questions."
    )
    parser.add_argument("before", type=Path, help=_FILES)
    parser.add_argument("after", type=Path, help="the same of the other model")
    parser.add_argument("--output", type=Path, required=True, help="folder for comparison.json, .md and .csv")
    parser.add_argument("--metrics", nargs="+", help="metrics of docs/metrics.md; the scores in the files by default")
    arguments = parser.parse_args(argv)
    given, comparison = {"before": arguments.before, "after": arguments.after}, arguments.output / "comparison.json"
    if arguments.before.resolve() == arguments.after.resolve():
        raise UserError("before and after are the same file", "name two files", file=arguments.after)
    lines = {name: read_predictions(path) for name, path in given.items()}
    copies = {name: arguments.output / f"{name}.jsonl" for name, path in given.items() if not is_ours(path)}
    _spare(given.values(), [*copies.values(), *(comparison.with_suffix(suffix) for suffix in (".json", ".md", ".csv"))])
    for name, copy in copies.items():
        write_predictions(copy, lines[name])
    _compare(given, {**given, **copies}, comparison, arguments.metrics)
    _show(comparison.with_suffix(".md").read_text(encoding="utf-8"))


def export_main(argv: Sequence[str]) -> None:
    """`vlmflow export PREDICTIONS --layout LAYOUT --output FILE`."""
    parser = argparse.ArgumentParser(
        "vlmflow export", description="Write predictions as a suite has them, to run its scorer on them."
    )
    parser.add_argument("predictions", type=Path, help=_FILES)
    parser.add_argument("--layout", choices=["vlmevalkit", "lmms-eval"], required=True)
    parser.add_argument("--output", type=Path, required=True, help="MODEL_TASK.xlsx (.tsv, .json), or TASK.json")
    parser.add_argument("--tsv", type=Path, help="vlmevalkit: the task's TSV, for its columns")
    parser.add_argument("--task", help="lmms-eval: name of the task")
    arguments = parser.parse_args(argv)
    _spare([arguments.predictions, *([arguments.tsv] if arguments.tsv else [])], [arguments.output])
    lines, total = read_predictions(arguments.predictions), None
    if arguments.layout == "vlmevalkit":
        total = vlmevalkit.export(lines, arguments.tsv, arguments.output)
    elif arguments.task is None:
        raise UserError("no task is named", "add --task NAME, as in lmms-eval's --tasks", field="--task")
    else:
        lmms_eval.export(lines, arguments.task, arguments.output)
    _show(f"{len(lines)} predictions: {arguments.output}")
    if total is not None and len(lines) < total:
        _show(f"{len(lines)} of the task's {total} rows: not the official number")


def _spare(inputs: Iterable[Path], outputs: Iterable[Path]) -> None:
    """:class:`UserError` if an output is one of the user's files."""
    written = {path.resolve() for path in outputs}
    for path in inputs:
        if path.resolve() in written:
            raise UserError("would be overwritten", "give another --output", file=path)


def _compare(given: dict[str, Path], files: dict[str, Path], comparison: Path, metrics: list[str] | None) -> None:
    """Compare ``files``, and speak of them, in errors too, as the user's ``given`` ones."""
    from vlmflow.evaluation.compare import compare_files  # with its libraries, only when it is run

    labels = str(given["before"]), str(given["after"])
    try:
        compare_files(files["before"], files["after"], comparison, metrics, labels)
    except UserError as error:
        names = {str(file): str(given[name]) for name, file in files.items()}
        raise _renamed(error.problem, names) from None


def _renamed(problem: Problem, names: dict[str, str]) -> UserError:
    """The problem with files called by other names."""
    pattern = re.compile("|".join(map(re.escape, names)))
    reason, file = (
        pattern.sub(lambda found: names[found[0]], str(text or "")) for text in (problem.reason, problem.file)
    )
    return UserError(reason, problem.advice, file=file or None, record=problem.record, field=problem.field)


def _show(text: str) -> None:
    """Print; a reader that has read enough, as in ``| head``, is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left is flushed when Python ends
