"""Predictions of any of the layouts, told apart by what is in the file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlmflow.errors import UserError
from vlmflow.field import lmms_eval, vlmevalkit
from vlmflow.field.rows import cell_of, name_of
from vlmflow.field.tables import Row, check_file, read_rows
from vlmflow.files import read_json, write_text


def read_predictions(path: Path) -> list[dict[str, Any]]:
    """Lines of predictions.jsonl, from a file of ours, of lmms-eval or of VLMEvalKit.

    Raises :class:`UserError` for another file, for no predictions, for a row that lacks something, for a record that is
    there twice, and for an answer that the suite did not get.
    """
    lines = vlmevalkit.read(path) if vlmevalkit.is_table(path) else _from_json(path)
    if not lines:
        raise UserError("no predictions in it", "name the file with the predictions", file=path)
    seen = set()
    for line in lines:
        if line["id"] in seen:
            raise UserError("the record is answered twice", "name a file of one task", file=path, record=line["id"])
        seen.add(line["id"])
    return lines


def is_ours(path: Path) -> bool:
    """Whether a file is a predictions.jsonl."""
    if path.suffix != ".jsonl" or not path.is_file():
        return False
    with path.open("rb") as stream:
        try:
            line = json.loads(stream.readline())
        except ValueError:
            return False
    return isinstance(line, dict) and {"id", "question", "reference", "prediction"} <= line.keys()


def write_predictions(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Write one line a record, with ``?`` for halves of surrogate pairs, which are no UTF-8."""
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_text(path, text.encode("utf-8", "replace").decode())


def _from_json(path: Path) -> list[dict[str, Any]]:
    rows = _logs(path) if path.suffix == ".json" else read_rows(path)
    if not rows:
        return []
    if lmms_eval.has(rows[0]):
        return lmms_eval.lines(path, rows)
    if vlmevalkit.has(rows[0]):
        return vlmevalkit.lines(path, rows)
    if {"id", "question", "reference", "prediction"} <= rows[0].keys():
        return [_our_line(path, number, row) for number, row in enumerate(rows, 1)]
    keys = ", ".join(list(rows[0])[:10])
    advice = "name predictions.jsonl, *_samples_*.jsonl of lmms-eval, or MODEL_TASK.xlsx of VLMEvalKit"
    raise UserError(f"not predictions: {keys}", advice, file=path)


def _our_line(path: Path, number: int, row: Row) -> dict[str, Any]:
    for column in ("question", "reference", "prediction"):
        cell_of(path, number, row, column, str)
    if "references" in row:
        cell_of(path, number, row, "references", list)
    return {**row, "id": name_of(path, number, row, "id")}


def _logs(path: Path) -> list[Row]:
    """The rows of a JSON file: a list, or under ``logs`` as lmms-eval had them once."""
    check_file(path)
    content = read_json(path)
    rows = content.get("logs") if isinstance(content, dict) else content
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        advice = "name the file with the predictions, not the one with the results"
        raise UserError("no list of predictions", advice, file=path)
    return rows
