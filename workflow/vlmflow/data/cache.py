"""What is known of good pictures, kept from one run to the next, so that only new and changed ones are decoded."""

from __future__ import annotations

import logging
import sqlite3
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import PIL
from PIL import features

from vlmflow.data.pictures import ImageFacts

_log = logging.getLogger(__name__)
_OURS = 0x766C6D66  # SQLite's application_id of such a file: "vlmf"
_COLUMNS = (
    "path BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, width INTEGER, height INTEGER, "
    "sha256 BLOB, pixels BLOB, look BLOB"
)
_WAIT = 10.0  # seconds for another process that writes the same file


class Known(NamedTuple):
    """Facts of a picture, valid for a file of this size in bytes and modification time in nanoseconds."""

    size: int
    mtime_ns: int
    facts: ImageFacts


class PictureCache:
    """A SQLite file of :class:`Known` by absolute path; without a path, or where it cannot be kept, it stays empty.

    What other ``checks`` or decoders found is forgotten, a damaged or foreign file replaced. Nothing that is wrong
    with the file stops anybody: a warning, and pictures are decoded. One process writes it at a time; write-ahead
    logging is off, as it needs memory that network file systems do not share. Use it in one thread.
    """

    def __init__(self, path: Path | None, checks: int, wait: float = _WAIT) -> None:
        self._path, self._wait, self._writes = path, wait, True
        decoders = (PIL.__version__, *(features.version(name) for name in ("jpg", "libjpeg_turbo", "webp", "avif")))
        self._version = zlib.crc32(f"{checks} {decoders}".encode()) & 0x7FFFFFFF
        self._file: sqlite3.Connection | None = None
        if path:
            self._guarded_open(path)

    def __enter__(self) -> PictureCache:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._close()

    def read(self, paths: Sequence[str]) -> dict[str, Known]:
        """What is known of these absolute paths."""
        found: dict[str, Known] = {}
        if self._file is None:
            return found
        query = "SELECT size, mtime_ns, width, height, sha256, pixels, look FROM pictures WHERE path = ?"
        try:
            for path in paths:
                if row := self._file.execute(query, (_key(path),)).fetchone():
                    size, mtime_ns, width, height, sha256, pixels, look = row
                    facts = ImageFacts(width, height, sha256, pixels, int.from_bytes(look, "big"))
                    found[path] = Known(size, mtime_ns, facts)
        except sqlite3.Error as error:
            self._give_up(error)
        return found

    def write(self, news: Mapping[str, Known]) -> None:
        """Add these pictures by absolute path, all or none of them; once this returns, a killed process keeps them."""
        if self._file is None or not self._writes or not news:
            return
        rows = (
            (_key(path), size, mtime_ns, f.width, f.height, f.sha256, f.pixels, f.look.to_bytes(8, "big"))
            for path, (size, mtime_ns, f) in news.items()
        )
        try:
            with self._file:
                self._file.executemany("INSERT OR REPLACE INTO pictures VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
        except sqlite3.OperationalError as error:  # locked, read-only, disk full: what it holds is good all the same
            self._writes = False
            self._warn(error)
        except sqlite3.Error as error:
            self._give_up(error)

    def _guarded_open(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._open(path)
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError:
                self._close()
                path.unlink()
                self._open(path)
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)

    def _open(self, path: Path) -> None:
        self._file = sqlite3.connect(path, timeout=self._wait)
        owner, version = (
            self._file.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
        )
        tables = [name for (name,) in self._file.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        if tables and owner != _OURS:
            raise sqlite3.DatabaseError("another program's file")
        if not tables or version != self._version:
            with self._file:
                self._file.execute("BEGIN IMMEDIATE")
                self._file.execute("DROP TABLE IF EXISTS pictures")
                self._file.execute(f"CREATE TABLE pictures ({_COLUMNS}) WITHOUT ROWID")
                self._file.execute(f"PRAGMA application_id = {_OURS}")
                self._file.execute(f"PRAGMA user_version = {self._version}")

    def _give_up(self, error: Exception) -> None:
        """Go on without; a damaged file is out of the way of the next run."""
        self._warn(error)
        self._close()
        damaged = isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)
        if self._path and damaged:
            self._path.unlink(missing_ok=True)

    def _warn(self, error: Exception) -> None:
        _log.warning("%s: pictures are not remembered for the next run: %s", self._path, error)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None


def _key(path: str) -> bytes:
    """Names may hold what UTF-8 cannot (lone surrogates)."""
    return path.encode("utf-8", "surrogatepass")
