"""CSV and TSV files: the first line names the columns, each further row is a record."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from vlmflow.data.raw import Raw
from vlmflow.data.report import shown
from vlmflow.errors import UserError

_CELL_CHARACTERS = 10_000_000


def read_table(stream: TextIO, delimiter: str, path: Path) -> Iterator[Raw]:
    """The rows as column -> text.

    Raises :class:`UserError` when the first line does not name the columns, or a wrong quote swallows further lines.
    """
    csv.field_size_limit(_CELL_CHARACTERS)
    lines = _cells(csv.reader(stream, delimiter=delimiter, strict=True), path)
    _, first = next(lines)
    header = [] if isinstance(first, csv.Error) else [cell.strip().lower() for cell in first]
    missing = [column for column in ("question", "answer") if column not in header]
    if missing or len(set(header)) < len(header):
        reason = f"missing column: {', '.join(missing)}" if missing else "repeated column: a name stands twice"
        advice = f"the first line names the columns image, question and answer with {delimiter!r} between them"
        raise UserError(reason, f"{advice}; it is {shown(delimiter.join(header))!r}", file=path)
    number = -1
    for number, (line, cells) in enumerate(lines):
        yield _row(number, f"line {line}", header, cells)
    if number < 0:
        raise UserError("empty table: no record under the column names", "write records into it", file=path)


def _cells(reader: Any, path: Path) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """(line number, cells or what is wrong) of each row that is not empty."""
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if reader.line_num > start:  # how many rows it took in, nobody knows
                where = f"lines {start} to {reader.line_num} are taken for one row"
                raise UserError(f"not a valid table: {error}, {where}", "check the quotes there", file=path) from None
            yield reader.line_num, error
        else:
            if cells:
                yield reader.line_num, cells


def _row(number: int, position: str, header: list[str], cells: list[str] | csv.Error) -> Raw:
    if isinstance(cells, csv.Error):
        return Raw(number, position, None, (f"not a valid table: {cells}", "check the quotes in this row", ""))
    if len(cells) != len(header):
        reason = f"wrong number of columns: {len(cells)} instead of {len(header)}"
        return Raw(number, position, None, (reason, "put quotes around text that holds the separator", ""))
    return Raw(number, position, dict(zip(header, cells, strict=True)))
