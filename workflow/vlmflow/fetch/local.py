"""A file or folder of the user's own: it is only read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vlmflow.errors import UserError
from vlmflow.fetch.names import select, unsafe
from vlmflow.fetch.partial import Fetched, Partial
from vlmflow.files import sha256_file
from vlmflow.links import link_or_copy


def fetch_path(config: dict[str, Any], partial: Partial) -> Fetched:
    """Bring the file ``config['path']``, or what ``patterns``, ``files`` and ``unpack`` choose below that folder.

    Files are linked (hard) where the file system allows it and copied otherwise. A link inside the folder that leads
    out of it is a :class:`UserError`.
    """
    given = Path(config["path"]).expanduser()
    files, patterns = config.get("files") or {}, config.get("patterns") or []
    if not given.exists():
        raise UserError("no such file or folder", "correct `path` (relative to where snakemake runs)", file=given)
    root = given.resolve()
    if root.is_dir():
        if partial.files.resolve().is_relative_to(root):
            raise UserError("the folder contains the results", "give a folder beside them", file=given)
        there = _files_below(root)
    else:
        there = {given.name: root}
    if patterns or files:
        patterns = [*patterns, *(config.get("unpack") or [])]
    names = select(there, patterns, files, str(given))
    for name in names:
        if trouble := unsafe(name):
            raise UserError(trouble, "rename it", file=repr(name))
        path = there[name].resolve()
        if root.is_dir() and not path.is_relative_to(root):
            raise UserError("a link out of the folder", "copy its target there", file=there[name])
        if not path.is_file():
            kind = "a link to a folder" if path.is_dir() else "no regular file"
            raise UserError(kind, "copy its target there, or leave it out with `patterns`", file=there[name])
        place(path, partial, name)
    return Fetched(names, {"path": config["path"]})


def _files_below(root: Path) -> dict[str, Path]:
    """Name -> path of everything that is no folder; links to folders are listed, not entered."""
    there = {}
    for folder, folders, files in os.walk(root):
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        for name in (*files, *links):
            path = Path(folder) / name
            there[path.relative_to(root).as_posix()] = path
    return there


def place(path: Path, partial: Partial, name: str, link: bool = True) -> None:
    """Put a file under its name, unless an earlier run did and it has not changed since."""
    target = partial.files / name
    new, state = path.stat(), target.stat() if target.is_file() else None
    if state is not None and (state.st_size, state.st_mtime_ns) == (new.st_size, new.st_mtime_ns):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    link_or_copy(path, partial.state / "copy", link)
    (partial.state / "copy").replace(target)


def reuse(partial: Partial, hashes: dict[str, str]) -> None:
    """Take over what an earlier fetch brought, name by name where it has the expected SHA-256."""
    for name, sha256 in hashes.items():
        old = partial.previous / name
        if old.is_file() and not (partial.files / name).exists() and sha256_file(old) == sha256:
            place(old, partial, name)
