"""Predictions of VLMEvalKit: ``MODEL_TASK.xlsx`` (or .tsv, .json: PRED_FORMAT), the task's columns and ``prediction``.

Written by ``infer_data_job`` of vlmeval/inference.py; its scorers read the same file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlmflow.errors import UserError
from vlmflow.field import tasks
from vlmflow.field.cells import as_list, as_text
from vlmflow.field.rows import cell_of, name_of
from vlmflow.field.scores import as_scores
from vlmflow.field.tables import Row, iterate_rows, read_rows, write_rows

FAILED = "Failed to obtain answer"
"""What VLMEvalKit writes in place of an answer that it did not get."""
_SCORES = ("hit", "score")
"""Columns that its scorers add to their copy of the file (``..._result``)."""
_PICTURES = ("image", "image_path")


def has(row: Row) -> bool:
    """Whether a row is one of VLMEvalKit's predictions."""
    return {"index", "prediction"} <= row.keys()


def lines(path: Path, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Lines of predictions.jsonl; ``scores`` are those of VLMEvalKit's own scorers, if the file has any.

    Raises :class:`UserError` for a row without an ``index`` or a ``prediction``; an empty answer is one.
    """
    return [_line(path, number, row) for number, row in enumerate(rows, 1)]


def _line(path: Path, number: int, row: Row) -> dict[str, Any]:
    index, accepted = name_of(path, number, row, "index"), tasks.accepted(row)
    prediction = as_text(cell_of(path, number, row, "prediction", str | int | float))  # a column of digits has numbers
    if prediction.startswith(FAILED):
        advice = "run VLMEvalKit again with --reuse: it asks what has failed once more"
        raise UserError(f"no answer: {prediction[:200]}", advice, file=path, record=index)
    reference = accepted[0] if accepted else ""
    further = {"references": accepted} if accepted[1:] else {}
    scores = as_scores({name: row[name] for name in _SCORES if name in row})
    return {
        "id": index,
        "category": tasks.category(row),
        "images": as_list(row.get("image_path")),
        "question": tasks.question({"question": "", **row}),
        "reference": reference,
        **further,
        "prediction": prediction,
        **({"scores": scores} if scores else {}),
    }


def export(predictions: Sequence[dict[str, Any]], task: Path | None, output: Path) -> int | None:
    """Write predictions so that VLMEvalKit's scorers can be run on them; return the number of rows of the whole task.

    ``task`` is the TSV that the records were prepared from: its columns, less the pictures, stand before
    ``prediction``. Without one the columns are what our lines hold, enough for open questions. Raises
    :class:`UserError` for a record that the task does not have.
    """
    if task is None:
        write_rows(output, [_row(line) for line in predictions])
        return None
    answers, rows, total = {line["id"]: line["prediction"] for line in predictions}, [], 0
    for row in iterate_rows(task):
        index, pictures = as_text(row.get("index")), [row.pop(name, "") for name in _PICTURES]
        total += index in answers or any(pictures)  # a row without a picture is never asked
        if index in answers:
            rows.append({**row, "prediction": answers.pop(index)})
    if answers:
        reason = f"{len(answers)} predictions are of no row of {task}"
        raise UserError(reason, "name the TSV that the data set was prepared from", record=next(iter(answers)))
    write_rows(output, rows)
    return total


def _row(line: dict[str, Any]) -> Row:
    references = line.get("references", [line["reference"]])
    answer = references[0] if len(references) == 1 else repr(references)
    row = {"index": line["id"], "question": line["question"].replace("<image>", "").strip(), "answer": answer}
    return {**row, "category": line.get("category") or "", "prediction": line["prediction"]}


def is_table(path: Path) -> bool:
    """Whether only VLMEvalKit writes files with this ending."""
    return path.suffix in (".xlsx", ".tsv", ".csv")


def read(path: Path) -> list[dict[str, Any]]:
    """The predictions in a table of VLMEvalKit."""
    rows = read_rows(path)
    if not rows or not has(rows[0]):
        named = ", ".join(map(str, rows[0])) if rows else "there are no rows"
        advice = "name the file MODEL_TASK.xlsx that VLMEvalKit wrote, not one of its score files"
        raise UserError(f"no columns index and prediction: {named}", advice, file=path)
    return lines(path, rows)
