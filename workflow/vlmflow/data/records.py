"""The canonical record: one line of results/data/<dataset>/<split>.jsonl (workflow/schemas/record.schema.yaml)."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Literal, overload

import msgspec
import numpy as np

from vlmflow.errors import UserError

Corners = tuple[float, float, float, float]
"""x1, y1, x2, y2: the left, upper, right and lower edge."""


class Image(msgspec.Struct, frozen=True):
    """A picture: path, size in pixels as seen upright, SHA-256 of the file."""

    path: str
    width: int
    height: int
    sha256: str


class Video(msgspec.Struct, frozen=True):
    """A video: path, number of frames, duration in seconds, size in pixels, SHA-256 of the file."""

    path: str
    frames: int
    duration: float
    width: int
    height: int
    sha256: str


class Box(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where something is in picture ``image`` (from 0): one or several boxes in pixels (``real``), 0..1 or 0..1000."""

    image: int
    type: Literal["real", "norm_1", "norm_1000"]
    bbox: tuple[Corners, ...]
    ref: str = ""


class Turn(msgspec.Struct, frozen=True):
    """One utterance; ``<image>`` and ``<video>`` mark the places of pictures and videos."""

    role: Literal["system", "user", "assistant"]
    text: str


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """A conversation about pictures and videos, in the order of their placeholders.

    ``repeat`` is how often training sees the record per epoch, on top of the data set's own ``repeat``; ``answers``
    are further right answers to the last question, which metrics accept as they do the last turn.
    """

    id: str
    images: tuple[Image, ...]
    turns: tuple[Turn, ...]
    category: str | None = None
    videos: tuple[Video, ...] = ()
    boxes: tuple[Box, ...] = ()
    repeat: float = 1.0
    answers: tuple[str, ...] = ()


_decoder = msgspec.json.Decoder(Record)
_encoder = msgspec.json.Encoder()


class RecordFile(Sequence[Record]):
    """The records of a file by index, decoded when asked for, so that a large data set costs no memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with _open(path) as stream:
            # An empty file cannot be mapped.
            self._bytes: mmap.mmap | bytes = (
                mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
            )
        self._starts = _line_starts(self._bytes)

    def __reduce__(self) -> tuple[type[RecordFile], tuple[Path]]:
        return RecordFile, (self.path,)  # a process of its own maps the file anew

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        line = self._bytes[self._starts[index] : self._starts[index + 1]]
        try:
            return _decoder.decode(line)
        except msgspec.MsgspecError as error:
            advice = "delete the file and run snakemake again"
            raise UserError(f"line {index + 1} is no record: {error}", advice, file=self.path) from error

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))


def read_records(path: Path) -> list[Record]:
    """All records of a file; a missing file or a broken line is a :class:`UserError` that names it."""
    return list(RecordFile(path))


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write records, one JSON object a line; a reader sees the old or the new file, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with part.open("wb") as stream:
        for record in records:
            stream.write(encode_record(record))
    part.replace(path)


def encode_record(record: Record) -> bytes:
    """The line of a record, line feed included."""
    return _encoder.encode(record) + b"\n"


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise UserError("no such file", "run the stage that makes it (snakemake does)", file=path) from None


def _line_starts(content: mmap.mmap | bytes, block: int = 1 << 24) -> np.ndarray:
    """Offset of every line, and of the end."""
    ends = [
        np.flatnonzero(np.frombuffer(content[start : start + block], np.uint8) == ord("\n")) + start + 1
        for start in range(0, len(content), block)
    ]
    starts = np.concatenate([np.zeros(1, np.int64), *ends])
    return starts if starts[-1] == len(content) else np.append(starts, len(content))
