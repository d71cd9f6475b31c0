"""The state of files that belong to the user, as a parameter of the jobs that read them. A newer date is no change."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from vlmflow.files import sha256_file, write_text
from vlmflow.plan.values import as_json

_log = logging.getLogger(__name__)
_WORTH_SAYING, _TOO_MUCH = 1_000_000_000, 20_000_000_000  # bytes
_NO_DATA = ("Thumbs.db", "desktop.ini")


class Dated(NamedTuple):
    """Size in bytes and modification time in nanoseconds."""

    size: int
    time: int


class OwnFiles:
    """Files and folders that jobs read as they are.

    Their state is made of names, sizes and times, as reading everything would take too long. :meth:`remember` keeps
    the hash of each file in ``folder``, so that one that was only touched or copied is recognised later.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._looked_at: dict[str, tuple[dict[str, Dated], dict[str, Any]]] = {}

    def state(self, paths: Sequence[str]) -> str:
        """JSON that changes when a file at or below one of ``paths`` does; each is looked at once."""
        for path in (path for path in paths if path not in self._looked_at):
            listing = list_files(Path(path).expanduser())
            self._looked_at[path] = (listing, self._unchanged(path, listing) or _state(listing))
        return as_json({"files": {path: self._looked_at[path][1] for path in paths}})

    def remember(self) -> None:
        """Hash what was looked at and is not known yet. A file that changed since leaves its folder unknown."""
        for path, (listing, state) in self._looked_at.items():
            kept = self._kept(path)
            known = {name: entry[2] for name, entry in kept["files"].items() if listing.get(name) == tuple(entry[:2])}
            new = sorted(listing.keys() - known.keys())
            if kept["state"] == state and not new:
                continue
            size = sum(listing[name].size for name in new)
            if size > _TOO_MUCH:
                continue  # a newer date then counts as a change: the stage that reads it runs again, not what follows
            if size > _WORTH_SAYING:
                _log.warning("Noting the contents of %s (%.1f GB): touching it will re-run nothing", path, size / 1e9)
            top = Path(path).expanduser()
            with ThreadPoolExecutor(4) as pool:
                known |= zip(new, pool.map(_hash, (top / name for name in new)), strict=True)
            if list_files(top) == listing:
                self._keep(path, listing, known, state)

    def changed(self, path: str) -> list[str]:
        """Names of files at or below ``path`` that are other ones, more or fewer than what is remembered."""
        kept = {name: Dated(*entry[:2]) for name, entry in self._kept(path)["files"].items()}
        listing = list_files(Path(path).expanduser())
        names = sorted(kept.keys() | listing.keys()) if kept else []
        return [name or Path(path).name for name in names if kept.get(name) != listing.get(name)]

    def _unchanged(self, path: str, listing: dict[str, Dated]) -> dict[str, Any] | None:
        """The state that was remembered, if it has the same files with the same contents."""
        kept = self._kept(path)
        files = {name: (Dated(*entry[:2]), entry[2]) for name, entry in kept["files"].items()}
        if not kept["state"] or _sizes(listing) != {name: dated.size for name, (dated, _) in files.items()}:
            return None
        top = Path(path).expanduser()
        touched = [name for name in sorted(listing) if listing[name] != files[name][0]]
        if not all(_hash(top / name) == files[name][1] for name in touched):
            return None
        if touched:
            self._keep(path, listing, {name: content for name, (_, content) in files.items()}, kept["state"])
        state: dict[str, Any] = kept["state"]
        return state

    def _kept(self, path: str) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            kept: dict[str, Any] = json.loads(self._file(path).read_text(encoding="utf-8"))
            return kept
        return {"state": None, "files": {}}

    def _keep(self, path: str, listing: dict[str, Dated], content: dict[str, str], state: dict[str, Any]) -> None:
        files = {name: [*dated, content[name]] for name, dated in listing.items()}
        with suppress(OSError):
            write_text(self._file(path), json.dumps({"path": path, "state": state, "files": files}))

    def _file(self, path: str) -> Path:
        return self._folder / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}.json"


def list_files(top: Path) -> dict[str, Dated]:
    """Name below ``top`` (empty if it is a file itself) -> size and time. Links are followed, each folder once.

    Hidden files, and those that Windows leaves in folders, are none of the data.
    """
    if not top.is_dir():
        return {"": _dated(top)} if top.exists() else {}
    found: dict[str, Dated] = {}
    entered: set[tuple[int, int]] = set()
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        place = (top / folder).stat()
        if (place.st_dev, place.st_ino) in entered:
            found[folder] = Dated(0, 0)  # under its other name
            continue
        entered.add((place.st_dev, place.st_ino))
        folders = []
        for entry in os.scandir(top / folder):
            if entry.name.startswith(".") or entry.name in _NO_DATA:
                continue
            if entry.is_dir():
                folders.append(f"{folder}{entry.name}/")
            else:
                found[f"{folder}{entry.name}"] = _dated(entry)
        waiting += sorted(folders, reverse=True)
    return found


def _dated(file: Path | os.DirEntry[str]) -> Dated:
    try:
        facts = file.stat()
    except OSError:
        facts = os.lstat(file)  # a link that leads nowhere is a file too
    return Dated(facts.st_size, facts.st_mtime_ns)


def _state(listing: dict[str, Dated]) -> dict[str, Any]:
    lines = "\n".join(f"{name}\0{dated.size}\0{dated.time}" for name, dated in sorted(listing.items()))
    return {
        "number": len(listing),
        "digest": hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()[:16],
    }


def _sizes(listing: dict[str, Dated]) -> dict[str, int]:
    return {name: dated.size for name, dated in listing.items()}


def _hash(file: Path) -> str:
    return sha256_file(file) if file.is_file() else ""
