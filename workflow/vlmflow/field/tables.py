"""Tables as the suites write them: xlsx, tsv, csv, json, jsonl. Texts stay as they are: "None" is no missing value."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import openpyxl
from openpyxl.cell import WriteOnlyCell
from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE
from openpyxl.worksheet.formula import ArrayFormula

from vlmflow.errors import UserError
from vlmflow.files import read_json, write_text

Row = dict[str, Any]
SUFFIXES = (".xlsx", ".tsv", ".csv", ".json", ".jsonl")
LONGEST_XLSX = 32_767  # characters in a cell, Excel's limit
_LONGEST = 1 << 28  # characters in a cell of a text file: a picture as base64
_UNPACKED = 1 << 31  # bytes in an xlsx file, which is a zip archive
_DELIMITERS = {".tsv": "\t", ".csv": ","}


def read_rows(path: Path) -> list[Row]:
    """All rows as column -> cell. Raises :class:`UserError` for a file that cannot be read as its suffix says."""
    return list(iterate_rows(path))


def iterate_rows(path: Path) -> Iterator[Row]:
    """The rows of a table, one in memory at a time if it is tsv, csv, jsonl or xlsx."""
    check_file(path)
    try:
        if path.suffix in _DELIMITERS:
            yield from _text(path, _DELIMITERS[path.suffix])
        elif path.suffix == ".xlsx":
            yield from _sheet(path)
        elif path.suffix == ".jsonl":
            yield from _lines(path)
        elif path.suffix == ".json":
            yield from _listed(read_json(path), path)
        else:
            raise UserError(f"not one of {', '.join(SUFFIXES)}", "name a file that the suite wrote", file=path)
    except UnicodeDecodeError as error:
        raise UserError(f"no UTF-8 text: byte {error.start}", "save it as UTF-8", file=path) from None


def check_file(path: Path) -> None:
    """:class:`UserError` unless there is such a file."""
    if not path.is_file():
        reason = "a folder, not a file" if path.is_dir() else "no such file"
        raise UserError(reason, "name a file that the suite wrote", file=path)


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as the suffix says; the columns are those of all rows, in the order in which they come up."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in _DELIMITERS:
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, columns, delimiter=_DELIMITERS[path.suffix], quoting=csv.QUOTE_ALL)
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".xlsx":
        _write_sheet(path, columns, rows)
    elif path.suffix == ".json":
        write_text(path, json.dumps(list(rows), indent=4, ensure_ascii=False))
    else:
        raise UserError("not one of .xlsx, .tsv, .csv, .json", "give the output one of these endings", file=path)


def _text(path: Path, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(_LONGEST)
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        try:
            header = next(reader, None)
            if header is None:
                raise UserError("empty file", "the first line names the columns", file=path)
            for cells in reader:
                if len(cells) != len(header):
                    reason = f"{len(cells)} cells instead of {len(header)}, up to line {reader.line_num}"
                    raise UserError(reason, "put quotes around text that holds tabs or line breaks", file=path)
                yield dict(zip(header, cells, strict=True))
        except csv.Error as error:
            raise UserError(
                f"not a valid table: {error}, line {reader.line_num}", "check the quotes", file=path
            ) from None


def _sheet(path: Path) -> Iterator[Row]:
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > _UNPACKED:
                raise UserError("unpacks to more than 2 GB", "let the suite write tsv (PRED_FORMAT=tsv)", file=path)
        book = openpyxl.load_workbook(path, read_only=True, data_only=False)
    except UserError:
        raise
    except Exception as error:  # a hostile file makes the reader raise anything
        raise UserError(f"not a valid xlsx file: {error}", "let the suite write it again", file=path) from None
    try:
        rows = book.worksheets[0].iter_rows(values_only=True)
        header = [str(name) for name in next(rows, ())]
        for cells in rows:
            yield dict(zip_longest(header, map(_value, cells[: len(header)]), fillvalue=""))
    finally:
        book.close()


def _value(cell: Any) -> Any:
    """A cell of a sheet; an empty one is an empty text, a formula is the text that it was before Excel took it."""
    if isinstance(cell, ArrayFormula):
        return f"{{{cell.text}}}"
    return "" if cell is None else cell if isinstance(cell, str | int | float) else str(cell)


def _lines(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"line {number} is no JSON: {error}", "let it be written again", file=path) from None
            if not isinstance(row, dict):
                raise UserError(f"line {number} is no JSON object", "let it be written again", file=path)
            yield row


def _listed(content: Any, path: Path) -> Iterator[Row]:
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise UserError("not a list of JSON objects", "name the file with the predictions", file=path)
    yield from content


def _write_sheet(path: Path, columns: Sequence[str], rows: Sequence[Row]) -> None:
    for number, row in enumerate(rows, 1):
        _check_sheet_row(path, number, row)
    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet()
    sheet.append(columns)
    for row in rows:
        sheet.append([_cell(sheet, row.get(name)) for name in columns])
    book.save(path)


def _check_sheet_row(path: Path, number: int, row: Row) -> None:
    for name, cell in row.items():
        text = cell if isinstance(cell, str) else ""
        too_long = len(text) > LONGEST_XLSX
        if too_long or ILLEGAL_CHARACTERS_RE.search(text):
            reason = f"{len(text):,} characters, a cell takes {LONGEST_XLSX:,}" if too_long else "control character"
            advice = "write .tsv or .json instead, and set PRED_FORMAT for the suite"
            raise UserError(reason, advice, file=path, record=f"row {number}", field=name)


def _cell(sheet: Any, value: Any) -> Any:
    """A text is written as text, also if it looks like a formula."""
    if not isinstance(value, str):
        return value
    cell = WriteOnlyCell(sheet, value)
    cell.data_type = "s"
    return cell
