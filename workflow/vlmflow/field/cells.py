"""Cells of the suites' tables: texts, lists that were written as Python writes them, numbers that stand for names."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Sequence
from typing import Any


def as_text(cell: Any) -> str:
    """A cell as text; empty for a missing one (None, NaN). 1.0, which spreadsheets make of 1, is ``1``."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell)


def as_list(cell: Any) -> list[str]:
    """The texts of a cell: ``['a', 'b']`` holds two, any other text is one, an empty cell and ``[]`` hold none.

    A list of anything but texts is one text: ``[10, 20, 110, 220]`` is a box. The suites evaluate such cells as Python;
    here they are only parsed.
    """
    if isinstance(cell, list | tuple):
        return list(cell) if _are_texts(cell) else [json.dumps(cell, ensure_ascii=False)]
    text = as_text(cell)
    if text[:1] == "[" and text[-1:] == "]":
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            value = None
        if isinstance(value, list) and _are_texts(value):
            return value
    return [text] if text else []


def _are_texts(parts: Sequence[Any]) -> bool:
    return all(isinstance(part, str) for part in parts)
