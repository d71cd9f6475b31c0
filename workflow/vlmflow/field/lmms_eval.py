"""Samples of lmms-eval: ``TIME_samples_TASK.jsonl`` (--log_samples), and the files that its model ``from_log`` reads.

Written by ``save_results_samples`` of lmms_eval/loggers/evaluation_tracker.py. Depending on the version a line has the
question as ``input``, ``arguments`` or in ``doc``, and the answer as ``filtered_resps``, ``resps`` or both; in old
versions the lines stand under ``logs`` of one JSON file per task.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlmflow.errors import UserError
from vlmflow.field.cells import as_list, as_text
from vlmflow.field.rows import name_of
from vlmflow.field.scores import as_scores
from vlmflow.field.tables import Row
from vlmflow.files import write_text

FAILED = ("[LMMS_EVAL_REQUEST_FAILED", "[LMMS_EVAL_BUDGET_EXCEEDED")
"""What lmms-eval writes in place of an answer that it did not get."""
_ITS_OWN = ("doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "input", "filter", "token_counts")


def has(row: Row) -> bool:
    """Whether a row is one of lmms-eval's samples."""
    return "doc_id" in row and ("filtered_resps" in row or "resps" in row)


def lines(path: Path, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Lines of predictions.jsonl; ``scores`` are lmms-eval's own metrics of a sample, as far as they can be scores.

    Of several filters the first one counts. Raises :class:`UserError` for a row without a ``doc_id`` or an answer.
    """
    first = rows[0].get("filter")
    return [_line(path, number, row) for number, row in enumerate(rows, 1) if row.get("filter") == first]


def _line(path: Path, number: int, row: Row) -> dict[str, Any]:
    name = name_of(path, number, row, "doc_id")
    prediction = _answer(row.get("filtered_resps", row.get("resps")))
    if prediction is None:
        advice = "only tasks of one generated text per question (output_type generate_until) can be taken over"
        raise UserError("no answer, or several", advice, file=path, record=name, field="filtered_resps")
    if prediction.startswith(FAILED):
        raise UserError(f"no answer: {prediction[:200]}", "run lmms-eval again", file=path, record=name)
    doc = row["doc"] if isinstance(row.get("doc"), dict) else {}
    references = as_list(row.get("target")) or [""]
    scores = as_scores({key: value for key, value in row.items() if key not in _ITS_OWN})
    return {
        "id": name,
        "category": as_text(doc.get("category")) or None,
        "images": [],
        "question": _question(row, doc),
        "reference": references[0],
        **({"references": references} if references[1:] else {}),
        "prediction": prediction,
        **({"scores": scores} if scores else {}),
    }


def _answer(responses: Any) -> str | None:
    """The only text in nested lists, None if it is not the only one."""
    while isinstance(responses, list):
        if len(responses) != 1:
            return None
        responses = responses[0]
    return responses if isinstance(responses, str) else None


def _question(row: Row, doc: Row) -> str:
    asked = row.get("input", row.get("arguments"))
    if isinstance(asked, dict):  # {"gen_args_0": {"arg_0": question, "arg_1": settings}}
        asked = list(asked.values())
    while isinstance(asked, list | dict) and asked:
        asked = asked[0] if isinstance(asked, list) else next(iter(asked.values()))
    return asked if isinstance(asked, str) and asked else as_text(doc.get("question"))


def export(predictions: Sequence[dict[str, Any]], task: str, output: Path) -> None:
    """Write a JSON file for ``--model from_log --model_args logs=FOLDER``, by which lmms-eval scores given answers.

    The records' ids must be lmms-eval's ``doc_id``: the places of the questions in its data set, from 0.
    """
    numbers = []
    for line in predictions:
        if not line["id"].isdecimal():
            advice = "records of lmms-eval are numbers, its doc_id; name them so in the data set"
            raise UserError(f"'{line['id']}' is no doc_id", advice, record=line["id"], field="id")
        numbers.append(int(line["id"]))
    logs = [
        {"doc_id": number, "target": line["reference"], "resps": [[line["prediction"]]]}
        for number, line in zip(numbers, predictions, strict=True)
    ]
    args = {"model": "vlmflow", "model_args": "", "limit": None}
    content = {"args": args, "model_configs": {"task": task}, "logs": logs}
    write_text(output, json.dumps(content, ensure_ascii=False, indent=1))
