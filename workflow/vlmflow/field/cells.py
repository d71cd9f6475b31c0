"""Cells of the suites' tables: texts, lists that were written as Python writes them, numbers that stand for names."""

from __future__ import annotations

import ast
import math
from typing import Any


def as_text(cell: Any) -> str:
    """A cell as text; empty for a missing one (None, NaN). 1.0, which spreadsheets make of 1, is ``1``."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell)


def as_list(cell: Any) -> list[str]:
    """The texts of a cell: ``['a', 'b']`` holds two, any other text is one, an empty cell holds none.

    The suites evaluate such cells as Python; here they are only parsed.
    """
    if isinstance(cell, list | tuple):
        return [as_text(part) for part in cell]
    text = as_text(cell)
    if text[:1] == "[" and text[-1:] == "]":
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            value = None
        if isinstance(value, list):
            return [as_text(part) for part in value]
    return [text] if text else []


def as_scores(cells: dict[str, Any]) -> dict[str, float]:
    """Those of ``cells`` that are numbers or truth values."""
    found = {name: cell for name, cell in cells.items() if isinstance(cell, int | float)}
    return {name: float(cell) for name, cell in found.items() if math.isfinite(cell)}
