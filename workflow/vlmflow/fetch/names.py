"""Names of files inside a source: which may be used, and which are chosen."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

from vlmflow.errors import UserError
from vlmflow.files import MANIFEST

_COMMIT = re.compile(r"[0-9a-f]{40}")


def unsafe(name: str) -> str | None:
    """What is wrong with a relative name that comes from outside, or None when it stays inside any folder."""
    path = PurePosixPath(name)
    if not name or "\0" in name or not _is_unicode(name):
        return "an empty or unreadable name"
    if path.is_absolute() or name.startswith("\\"):
        return "an absolute path"
    if len(name) > 1 and name[1] == ":" and name[0].isalpha():
        return "a drive letter"
    if "\\" in name:
        return "a backslash in the name"
    if ".." in path.parts:
        return "'..' in the path"
    return None


def pinned(config: dict[str, Any]) -> bool:
    """Whether the configuration of a source settles the content that a fetch brings, whenever and wherever."""
    if "pypi" in config:  # a version is never published twice
        return True
    if "hub" in config or "modelscope" in config:
        return bool(_COMMIT.fullmatch(config.get("revision") or ""))
    files = config.get("files") or {}
    return "url" in config and bool(files) and all(files.values())


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_name(name: str) -> None:
    """Raise :class:`UserError` unless a configured name lies inside the folder that it is joined to."""
    if unsafe(name) or ":" in name:
        raise UserError("not a relative path inside the source", "name the file without '..'", field=f"files: {name!r}")
    if PurePosixPath(name).as_posix() != name or name in (MANIFEST, "."):
        raise UserError("this name cannot be used", f"write it as NAME or FOLDER/NAME, not {MANIFEST}", field=name)


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a shell pattern fits the whole relative name; as on the hubs, ``*`` crosses ``/``, ``a/`` is all of a."""
    return any(fnmatch.fnmatchcase(name, pattern + "*" * pattern.endswith("/")) for pattern in patterns)


def select(names: Iterable[str], patterns: list[str], named: Iterable[str], origin: str) -> list[str]:
    """The ``named`` files and those that ``patterns`` choose; all when there is neither. In alphabetical order.

    Raises :class:`UserError` for a named file that is not there, or when nothing is left.
    """
    there, wanted = set(names), set(named)
    for name in sorted(wanted - there):
        close = difflib.get_close_matches(name, there, n=3)
        advice = f"did you mean {' or '.join(close)}?" if close else f"it has {some(there)}"
        raise UserError(f"no such file in {origin}", advice, field=f"files: {name}")
    chosen = {name for name in there if matches(name, patterns)} | wanted if patterns or wanted else there
    if not chosen:
        raise UserError(f"no file of {origin} matches {', '.join(patterns) or 'the source'}", f"it has {some(there)}")
    return sorted(chosen)


def some(names: Iterable[str]) -> str:
    """A few of the names, for a message."""
    listed = sorted(names)
    more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
    return ", ".join(listed[:5]) + more if listed else "no files"
