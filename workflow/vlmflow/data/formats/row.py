"""A row of a CSV or TSV file: one picture, one question, one answer."""

from __future__ import annotations

from vlmflow.data.formats.draft import Draft, Format, Value
from vlmflow.data.records import Turn

_SPEAKERS = (("system", "system"), ("question", "user"), ("answer", "assistant"))


def _draft(value: Value) -> Draft:
    turns = [Turn(role, value[column]) for column, role in _SPEAKERS if column != "system" or value.get(column)]  # type: ignore[arg-type]
    images = [value["image"]] if "image" in value else []
    return Draft(value.get("id") or None, turns, images, category=value.get("category") or None)


def _turn_field(value: Value, index: int) -> str:
    return ("system", "question", "answer")[index if value.get("system") else index + 1]


ROW = Format("table", _draft, _turn_field, "image")
