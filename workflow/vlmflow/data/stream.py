"""Annotation files as raw records, one after the other, in memory that does not grow with the file.

JSON arrays, JSON lines, CSV and TSV; each may be gzipped (``.gz``). Bytes that are no UTF-8 arrive as lone surrogates
(U+DC80 and up), so that the record which holds them can be named and the others can be used.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from vlmflow.data.raw import Finding, Raw
from vlmflow.data.report import shown
from vlmflow.data.table import read_table
from vlmflow.errors import UserError

_BLOCK = 1 << 22  # characters read at a time
_LONGEST = 1 << 28  # characters of a record; a longer one is a mistake in the file
_GZIP_BYTES, _GZIP_RATIO = 100_000_000, 200  # a file may unfold to either; more is a decompression bomb
_CUT = 16  # a literal, number or escape may be cut this close to the end of the text read so far
_NEXT = re.compile(r"[ \t\r\n]*,[ \t\r\n]*(?=\{)")
_SPACE = re.compile(r"[ \t\r\n]*")


def read_raw(path: Path, form: str = "auto") -> Iterator[Raw]:
    """The records of an annotation file, read as ``form`` says (csv, tsv) or as its content looks.

    Raises :class:`UserError` when the file as a whole is wrong.
    """
    if path.exists() and not path.is_file():
        raise UserError("no file: it is a folder or device", "name an annotation file", file=path)
    with _open(path) as stream:
        head = ""
        while not head and (block := stream.read(4096)):
            head = block.lstrip()
    if not head:
        raise UserError("empty file: no record", "write records into it, or leave the file out", file=path)
    if head.startswith(("\udcff\udcfe", "\udcfe\udcff")):
        raise UserError("no UTF-8 text: the file is UTF-16", "save it as UTF-8", file=path)
    with _open(path) as stream:
        if form in ("csv", "tsv") or (head[0] not in "[{" and not is_json(path)):
            tabs = form == "tsv" or (form != "csv" and _is_tsv(path, head))
            yield from read_table(stream, "\t" if tabs else ",", path)
        elif head[0] == "[" and not _is_lines(path):
            yield from _array(stream, path)
        else:
            yield from _lines(stream, path)


def is_json(path: Path) -> bool:
    """Whether the file's name says that it is JSON or JSON lines."""
    return path.name.removesuffix(".gz").endswith((".json", ".jsonl"))


def _is_tsv(path: Path, head: str) -> bool:
    return path.name.removesuffix(".gz").endswith(".tsv") or "\t" in head.splitlines()[0]


def _is_lines(path: Path) -> bool:
    """A .jsonl file may start with '[', too: its first record is a list by mistake, or it is an array."""
    if not path.name.removesuffix(".gz").endswith(".jsonl"):
        return False
    with _open(path) as stream:
        first, second = stream.readline(_LONGEST), stream.readline(_LONGEST)
    try:
        json.loads(first)
    except ValueError:
        return False
    return bool(second.strip())


class _Gzip(gzip.GzipFile):
    """Refuses to unfold a decompression bomb."""

    def read1(self, size: int = -1) -> bytes:
        block = super().read1(size)
        if self.tell() > max(_GZIP_BYTES, _GZIP_RATIO * Path(str(self.name)).stat().st_size):
            reason = f"decompression bomb: unfolds to more than {_GZIP_RATIO} times its size"
            raise UserError(reason, "decompress it yourself if you trust it", file=Path(str(self.name)))
        return block


def _open(path: Path) -> TextIO:
    file = _Gzip(path) if path.suffix == ".gz" else path.open("rb")
    return io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")


# --- JSON ------------------------------------------------------------------------------------------------------------


class Decoder:
    """The standard library's C scanner; notes what JSON forbids and Python would let pass."""

    def __init__(self) -> None:
        self._notes: list[Finding] = []
        decoder = json.JSONDecoder(
            object_pairs_hook=self._object, parse_constant=self._constant, parse_float=self._float
        )
        self._decode = decoder.raw_decode

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            self._notes.append((f"duplicate key: '{shown(twice)}'", "remove one of the two", ""))
        return value

    def _float(self, text: str) -> float | None:
        value = float(text)
        if math.isfinite(value):
            return value
        self._constant(text)
        return None

    def _constant(self, name: str) -> None:
        self._notes.append((f"not valid JSON: {shown(name)} is no number", "write a number or null", ""))

    def decode(self, text: str, start: int) -> tuple[Any, int, Finding | None]:
        """(value, end, what is wrong with it) of the JSON value that starts at ``start``."""
        self._notes.clear()
        value, end = self._decode(text, start)
        return value, end, self._notes[0] if self._notes else None


def _lines(stream: TextIO, path: Path) -> Iterator[Raw]:
    decoder, number, line = Decoder(), 0, 0
    while text := stream.readline(_LONGEST):
        line += 1
        stripped = text.strip(" \t\r\n")
        if not number and (stripped == "{" or (not path.name.endswith((".jsonl", ".jsonl.gz")) and _is_cut(stripped))):
            advice = "write a list of records, [{...}, {...}], or one record a line"
            raise UserError("no list of records: an object goes over several lines", advice, file=path)
        if stripped:
            yield _line(decoder, number, f"line {line}", stripped)
            number += 1


def _is_cut(text: str) -> bool:
    """Whether a JSON value begins well and has no end."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return bool(text) and error.pos >= len(text)
    except (ValueError, RecursionError):
        return False
    return False


def _line(decoder: Decoder, number: int, position: str, text: str) -> Raw:
    try:
        value, end, broken = decoder.decode(text, 0)
        if end == len(text):
            return Raw(number, position, value if broken is None else None, broken)
        reason = f"more than one value in a line: character {end + 1} and on"
        return Raw(number, position, None, (reason, "write one whole record a line", ""))
    except RecursionError:
        return Raw(number, position, None, ("nested too deeply: no record is", "correct the line", ""))
    except ValueError as error:
        return Raw(number, position, None, (f"not valid JSON: {error}", "write one whole record a line", ""))


class _Window:
    """The part of a text stream that is being read: ``text`` from ``at`` on is still to come."""

    def __init__(self, stream: TextIO, path: Path) -> None:
        self._stream, self._path = stream, path
        self.text, self.at, self._line, self._column = "", 0, 1, 1

    def more(self) -> bool:
        """Read on, dropping what was consumed; doubles what is kept of a long record. False at the end."""
        self._line, self._column = self._place(self.at)
        kept = self.text[self.at :]
        if len(kept) > _LONGEST:
            raise self.error(f"record of more than {_LONGEST:,} characters", 0)
        block = self._stream.read(max(_BLOCK, len(kept)))
        self.text, self.at = kept + block, 0
        return bool(block)

    def skip_space(self) -> str:
        """The next character that is not white space, unconsumed; empty at the end."""
        while True:
            self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def error(self, reason: str, place: int) -> UserError:
        """A :class:`UserError` that names the line of ``place``, an offset in ``text``."""
        line, column = self._place(place)
        where = f"line {line}, column {column}"
        return UserError(f"not valid JSON: {reason} ({where})", "correct the file at this place", file=self._path)

    def _place(self, offset: int) -> tuple[int, int]:
        """Line and column in the file, from 1, of an offset in ``text``."""
        lines, last = self.text.count("\n", 0, offset), self.text.rfind("\n", 0, offset)
        return self._line + lines, offset - last if lines else self._column + offset


def _array(stream: TextIO, path: Path) -> Iterator[Raw]:
    window, decoder, index = _Window(stream, path), Decoder(), 0
    window.skip_space()
    window.at += 1
    while window.skip_space() != "]":
        value, broken = _element(window, decoder)
        yield Raw(index, f"index {index}", value if broken is None else None, broken)
        index += 1
        if (comma := _NEXT.match(window.text, window.at)) and comma.end() < len(window.text):
            window.at = comma.end()
            continue
        following = window.skip_space()
        if following not in (",", "]"):
            raise window.error("',' or ']' expected after a record" if following else "the list has no end", window.at)
        if following == ",":
            window.at += 1
            if window.skip_space() == "]":
                raise window.error("a comma after the last record", window.at)
    window.at += 1
    if window.skip_space():
        raise window.error("something stands after the end of the list", window.at)
    if not index:
        raise UserError("empty list: no record", "write records into it, or leave the file out", file=path)


def _element(window: _Window, decoder: Decoder) -> tuple[Any, Finding | None]:
    """The next value of an array; reads on for as long as it may only be cut."""
    while True:
        try:
            value, end, broken = decoder.decode(window.text, window.at)
        except RecursionError:
            raise window.error("nested too deeply", window.at) from None
        except json.JSONDecodeError as error:
            cut = error.pos >= len(window.text) - _CUT or error.msg.startswith("Unterminated string")
            place = error.pos - window.at
            if not (cut and window.more()):
                raise window.error(error.msg, window.at + place) from None
        except ValueError as error:  # an integer of thousands of digits
            raise window.error(str(error), window.at) from None
        else:
            if end < len(window.text) or not window.more():
                window.at = end
                return value, broken
