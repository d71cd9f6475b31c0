"""The commands `vlmflow import`, `vlmflow compare` and `vlmflow export`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from vlmflow.errors import UserError
from vlmflow.field import lmms_eval, vlmevalkit
from vlmflow.field.predictions import is_ours, read_predictions, write_predictions

_FILES = "predictions.jsonl of ours, *_samples_*.jsonl of lmms-eval, or MODEL_TASK.xlsx/.tsv/.json of VLMEvalKit"


def import_main(argv: Sequence[str]) -> None:
    """`vlmflow import FILE --output predictions.jsonl`."""
    parser = argparse.ArgumentParser("vlmflow import", description="Turn a suite's predictions into predictions.jsonl.")
    parser.add_argument("file", type=Path, help=_FILES)
    parser.add_argument("--output", type=Path, required=True, help="predictions.jsonl to write")
    arguments = parser.parse_args(argv)
    lines = read_predictions(arguments.file)
    write_predictions(arguments.output, lines)
    print(f"{len(lines)} predictions: {arguments.output}")


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
    from vlmflow.evaluation.compare import compare_files  # with its libraries, only when it is run

    before, after = (_ours(arguments.output, name, getattr(arguments, name)) for name in ("before", "after"))
    comparison = arguments.output / "comparison.json"
    compare_files(before, after, comparison, arguments.metrics)
    print(comparison.with_suffix(".md").read_text(encoding="utf-8"))


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
    lines = read_predictions(arguments.predictions)
    if arguments.layout == "vlmevalkit":
        vlmevalkit.export(lines, arguments.tsv, arguments.output)
    elif arguments.task is None:
        raise UserError("no task is named", "add --task NAME, as in lmms-eval's --tasks", field="--task")
    else:
        lmms_eval.export(lines, arguments.task, arguments.output)
    print(f"{len(lines)} predictions: {arguments.output}")


def _ours(output: Path, name: str, path: Path) -> Path:
    """A file of ours as it is; another one, read into the folder of the comparison."""
    if is_ours(path):
        return path
    file = output / f"{name}.jsonl"
    write_predictions(file, read_predictions(path))
    return file
