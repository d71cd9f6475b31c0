"""A row of a CSV or TSV file: one picture, one question, one answer."""

from __future__ import annotations

import json

from vlmflow.data.formats.draft import Draft, Format, UnusableError, Value
from vlmflow.data.records import Turn

_SPEAKERS = (("system", "system"), ("question", "user"), ("answer", "assistant"))


def _draft(value: Value) -> Draft:
    turns = [Turn(role, value[column]) for column, role in _SPEAKERS if column != "system" or value.get(column)]  # type: ignore[arg-type]
    images = [value["image"]] if "image" in value else []
    category, answers = value.get("category") or None, _further(value.get("answers") or "[]")
    return Draft(value.get("id") or None, turns, images, category=category, answers=answers)


def _further(cell: str) -> list[str]:
    """The cell of further answers: a JSON list of texts."""
    try:
        answers = json.loads(cell)
    except (ValueError, RecursionError):
        answers = None
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        advice = 'write ["one answer", "another"], with the quotes doubled in a CSV file'
        raise UnusableError("wrong answers: not a JSON list of texts", advice, "answers")
    return answers


def _turn_field(value: Value, index: int) -> str:
    return ("system", "question", "answer")[index if value.get("system") else index + 1]


ROW = Format("table", _draft, _turn_field, "image")
