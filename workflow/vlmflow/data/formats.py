"""Annotation files as drafts of records: every check that needs no picture.

``llava`` is JSON or JSON lines (workflow/schemas/llava.schema.yaml), ``csv`` and ``tsv`` have the columns image,
question and answer, and perhaps id, category and system; ``.gz`` is read too.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from vlmflow.data.records import Turn
from vlmflow.data.report import shown
from vlmflow.data.rules import PLACEHOLDER, ROLES, Finding, findings, image_names, place, schema
from vlmflow.errors import Problem, UserError

_COLUMNS = ("image", "question", "answer")
_GZIP_BYTES, _GZIP_RATIO = 100_000_000, 200  # a file may unfold to either; more is a decompression bomb


@dataclass(frozen=True)
class Draft:
    """A record whose text is right and whose pictures, named relative to the image folder, are not yet checked."""

    id: str
    images: tuple[str, ...]
    turns: tuple[Turn, ...]
    category: str | None
    file: Path
    label: str  # how a message names the record


@dataclass
class Annotations:
    """What annotation files hold; a problem without a record concerns a whole file."""

    drafts: list[Draft] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    read: int = 0
    repaired: Counter[str] = field(default_factory=Counter)
    placed: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)


class _Row(NamedTuple):
    """One record as it stands in a file, a table's row in the shape of a LLaVA record."""

    number: int
    position: str
    value: Any
    broken: Finding | None = None
    columns: dict[str, str] | None = None  # field of the LLaVA record -> column of the table


def read_annotations(paths: Sequence[Path], form: str, placeholder: str, limit: int | None = None) -> Annotations:
    """Read every file and check every record; nothing is raised, all problems are in the result.

    ``form`` is auto, llava, csv or tsv; ``placeholder`` (first, last, error) says which user turn of a record without
    ``<image>`` gets one for each picture; ``limit`` reads only the first records.
    """
    found = Annotations()
    suffixes: dict[str, int] = {}
    for path in paths:
        try:
            for row in _rows(path, form):
                if limit is not None and found.read >= limit:
                    return found
                found.read += 1
                _take(path, row, placeholder, found, suffixes)
        except UserError as error:
            found.problems.append(error.problem)
        except UnicodeDecodeError:
            found.problems.append(Problem("not readable: no UTF-8 text", "save the file as UTF-8", path))
        except (OSError, EOFError, RecursionError, zlib.error) as error:
            found.problems.append(Problem(f"not readable: {error}", "make or copy the file again", path))
    return found


def _take(path: Path, row: _Row, placeholder: str, found: Annotations, suffixes: dict[str, int]) -> None:
    """Add one record to ``found``, as a draft or as its problems."""
    value = row.value
    name = value.get("id") if isinstance(value, dict) else None
    label = row.position if name is None else f"{shown(name)} ({row.position})"
    renamed = isinstance(value, dict) and "conversation" in value and "conversations" not in value
    if renamed:
        value["conversations"] = value.pop("conversation")
    if wrong := [row.broken] if row.broken else findings(value, placeholder):
        columns = row.columns or {}
        found.problems += [Problem(why, advice, path, label, columns.get(at, at) or None) for why, advice, at in wrong]
        return
    images = image_names(value)
    turns = [Turn(ROLES[turn["from"]], turn["value"]) for turn in value["conversations"]]
    if images and not any(PLACEHOLDER in turn.text for turn in turns):
        place(turns, len(images), placeholder)
        found.placed[f"{PLACEHOLDER} before the {placeholder} question"] += 1
    wanted = f"{path.name.removesuffix('.gz').rsplit('.', 1)[0]}-{row.number}" if name is None else str(name)
    unique = _unique(wanted, suffixes)
    found.drafts.append(Draft(unique, images, tuple(turns), value.get("category"), path, label))
    found.repaired += Counter({"key 'conversation'": int(renamed), "duplicate id": int(unique != wanted)})
    found.ignored.update(shown(key) for key in value if key not in schema()["properties"])


def _unique(name: str, suffixes: dict[str, int]) -> str:
    """``name``, or with the first free suffix -2, -3, ... when it is taken; ``suffixes`` holds the last of each."""
    unique, number = name, suffixes.get(name, 1)
    while unique in suffixes:
        number += 1
        unique = f"{name}-{number}"
    suffixes[name] = number
    suffixes.setdefault(unique, 1)
    return unique


# --- files -----------------------------------------------------------------------------------------------------------


def _rows(path: Path, form: str) -> Iterator[_Row]:
    if path.suffix == ".gz":
        _refuse_bomb(path)
    with _open(path) as stream:
        head = stream.read(4096).lstrip()
    if not head:
        raise UserError("empty file: no record", "write records into it, or leave the file out", file=path)
    if form == "auto":
        form = _form(path.name.removesuffix(".gz"), head)
    with _open(path) as stream:
        if form != "llava":
            yield from _table(stream, "\t" if form == "tsv" else ",", path)
        elif head.startswith("["):
            yield from _json_list(stream, path)
        else:
            yield from _json_lines(stream, path)


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _refuse_bomb(path: Path) -> None:
    left = max(_GZIP_BYTES, _GZIP_RATIO * path.stat().st_size)
    with gzip.open(path) as stream:
        while block := stream.read(1 << 20):
            left -= len(block)
            if left < 0:
                reason = f"decompression bomb: unfolds to more than {_GZIP_RATIO} times its size"
                raise UserError(reason, "decompress it yourself if you trust it", file=path)


def _form(name: str, head: str) -> str:
    if head[0] in "[{" or name.endswith((".json", ".jsonl")):
        return "llava"
    return "tsv" if name.endswith(".tsv") or "\t" in head.splitlines()[0] else "csv"


def _json_list(stream: TextIO, path: Path) -> Iterator[_Row]:
    text = stream.read()
    try:
        values = json.loads(text)
    except ValueError as error:
        if ".jsonl" not in path.suffixes:
            raise UserError(f"not valid JSON: {error}", "correct the file at this place", file=path) from error
        yield from _json_lines(io.StringIO(text), path)  # records a line, the first of which is a list by mistake
        return
    for index, value in enumerate(values):
        yield _Row(index, f"index {index}", value)


def _json_lines(stream: TextIO, path: Path) -> Iterator[_Row]:
    index = 0
    for number, line in enumerate(stream, start=1):
        if line.strip() == "{":
            advice = "write a list of records, [{...}, {...}], or one record a line"
            raise UserError("no list of records: an object goes over several lines", advice, file=path)
        if line.strip():
            yield _json_line(index, f"line {number}", line)
            index += 1


def _json_line(index: int, position: str, line: str) -> _Row:
    try:
        return _Row(index, position, json.loads(line))
    except (ValueError, RecursionError) as error:
        return _Row(index, position, None, (f"not valid JSON: {error}", "write one whole record a line", ""))


def _table(stream: TextIO, delimiter: str, path: Path) -> Iterator[_Row]:
    lines = _cells(csv.reader(stream, delimiter=delimiter, strict=True))
    _, first = next(lines)
    header = [] if isinstance(first, csv.Error) else [cell.strip().lower() for cell in first]
    missing = [column for column in _COLUMNS if column not in header]
    if missing or len(set(header)) < len(header):
        reason = f"missing column: {', '.join(missing)}" if missing else "repeated column: a name stands twice"
        advice = f"the first line names the columns {', '.join(_COLUMNS)} with {delimiter!r} between them"
        raise UserError(reason, f"{advice}; it is {shown(delimiter.join(header))!r}", file=path)
    for index, (number, cells) in enumerate(lines):
        yield _table_row(index, f"line {number}", header, cells)


def _cells(reader: Any) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """(line number, cells or what is wrong) of each row that is not empty."""
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield reader.line_num, error
        else:
            if cells:
                yield reader.line_num, cells


def _table_row(index: int, position: str, header: list[str], cells: list[str] | csv.Error) -> _Row:
    if isinstance(cells, csv.Error):
        return _Row(index, position, None, (f"not a valid table: {cells}", "check the quotes in this row", ""))
    if len(cells) != len(header):
        reason = f"wrong number of columns: {len(cells)} instead of {len(header)}"
        return _Row(index, position, None, (reason, "put quotes around text that holds the separator", ""))
    row: dict[str, Any] = {column: cell or None for column, cell in zip(header, cells, strict=True)}
    speakers = {"system": "system", "question": "human", "answer": "gpt"}
    spoken = [(column, row.pop(column, None) or "") for column in speakers]
    spoken = spoken if spoken[0][1] else spoken[1:]
    turns = [{"from": speakers[column], "value": text} for column, text in spoken]
    columns = {f"conversations[{i}].value": column for i, (column, _) in enumerate(spoken)}
    return _Row(index, position, {**row, "conversations": turns}, None, {**columns, "conversations": "question"})
