"""Answers on disk as they come, so that nothing is asked twice: not after a kill, not by another evaluation."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from vlmflow.errors import UserError
from vlmflow.evaluation.answers import Answer, writable
from vlmflow.files import sha256_json, write_json


class AnswerStore:
    """The answers of one model with one set of ``settings``, in a folder of ``cache`` that is named after them.

    ``known``: key of a question -> answer, of every run that had these settings. What :meth:`add` is given goes into
    the file ``writer``, which no other process may write, as one line: a kill leaves all of it or nothing.
    """

    def __init__(self, cache: Path, settings: dict[str, Any], writer: str) -> None:
        self.folder = cache / sha256_json(settings)[:16]
        self._file = self.folder / f"{writer}.jsonl"
        self.known: dict[str, Answer] = {}
        if not (self.folder / "settings.json").exists():
            write_json(self.folder / "settings.json", settings)
        for file in sorted(self.folder.glob("*.jsonl")):
            for group in _groups(file):
                self.known.update(group)

    def __enter__(self) -> AnswerStore:
        """Open the file to write, without what a killed process left of its last line."""
        self._stream = self._file.open("ab")
        self._stream.truncate(self._file.read_bytes().rfind(b"\n") + 1)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        with suppress(OSError):  # :meth:`add` has said what could not be written
            self._stream.close()

    def add(self, group: Mapping[str, Answer]) -> None:
        """Keep answers by key of their questions; they are on the disk when this returns."""
        whole = {key: writable(answer) for key, answer in group.items()}
        try:
            self._stream.write(msgspec.json.encode(whole) + b"\n")
            self._stream.flush()
            os.fsync(self._stream.fileno())
        except OSError as error:
            reason = f"cannot keep answers: {error.strerror}"
            raise UserError(reason, "make room on the disk", file=self._file) from None
        self.known.update(whole)


def _groups(file: Path) -> Iterator[dict[str, Answer]]:
    """The groups of answers in a file, less lines that a power cut or a kill left half-written."""
    for line in file.read_bytes().split(b"\n")[:-1]:
        with suppress(msgspec.DecodeError, UnicodeDecodeError):
            yield msgspec.json.decode(line, type=dict[str, Answer])
