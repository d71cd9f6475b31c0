"""What every row of a file with predictions must have; the message for one that has not says where it stands."""

from __future__ import annotations

import json
from pathlib import Path
from types import UnionType
from typing import Any

from vlmflow.errors import UserError
from vlmflow.field.cells import as_text
from vlmflow.field.tables import Row


def cell_of(path: Path, number: int, row: Row, column: str, kinds: type | UnionType) -> Any:
    """The cell in ``column`` of row ``number`` (from 1); :class:`UserError` if it is missing or of another kind."""
    if not isinstance(row.get(column), kinds):
        raise _wrong(path, number, row, column)
    return row[column]


def name_of(path: Path, number: int, row: Row, column: str) -> str:
    """The record's name in ``column``, a number or a text that is not empty, as text; :class:`UserError` otherwise."""
    name = as_text(cell_of(path, number, row, column, str | int | float))
    if not name:
        raise _wrong(path, number, row, column)
    return name


def _wrong(path: Path, number: int, row: Row, column: str) -> UserError:
    shown = json.dumps(row.get(column), ensure_ascii=False, default=str)[:80]
    reason = f"it is {shown if column in row else 'missing'}"
    place = f"{'line' if path.suffix == '.jsonl' else 'row'} {number}"
    return UserError(reason, "let the file be written again", file=path, record=place, field=column)
