"""The pictures of a folder."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from pathlib import Path
from typing import NoReturn

from vlmflow.data.paths import locate
from vlmflow.data.report import shown
from vlmflow.errors import Problem, UserError

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif"}
)
_NAMELESS = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_log = logging.getLogger(__name__)


def find_pictures(folder: Path) -> tuple[dict[str, Path], list[Problem]]:
    """Name relative to ``folder`` -> file of every picture in it and its subfolders, sorted, and what is wrong.

    Hidden files and folders are left out. Links are followed to files inside ``folder`` only.
    """
    if not folder.is_dir():
        raise UserError("no such folder", "correct `path` and `images` of the data set", file=folder)
    names, other = [], Counter[str]()
    problems = []
    for base, folders, files in os.walk(folder, onerror=_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        problems += [problem for name in folders if (problem := _linked_folder(folder, Path(base, name)))]
        for name in files:
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith("."):
                names.append(Path(base, name).relative_to(folder).as_posix())
            elif not name.startswith("."):
                other[Path(name).suffix.lower()] += 1
    if other:
        listed = ", ".join(f"{count} {shown(suffix) or 'without suffix'}" for suffix, count in other.most_common(10))
        _log.info("files that are not pictures by their suffix are left out: %s", listed)
    if not names and not problems:
        advice = f"put pictures there ({', '.join(sorted(SUFFIXES))}), or correct `path` and `images` of the data set"
        raise UserError("no pictures", advice, file=folder)
    located = {name: _located(folder, name) for name in sorted(names)}
    problems += [place for place in located.values() if isinstance(place, Problem)]
    return {name: place for name, place in located.items() if isinstance(place, Path)}, problems


def _located(folder: Path, name: str) -> Path | Problem:
    if _NAMELESS.search(name):
        advice = "rename the file: annotations are UTF-8 text"
        return _problem(folder / name, "broken name", "control character, or no UTF-8", advice)
    return locate(folder, name, "picture")


def _linked_folder(root: Path, folder: Path) -> Problem | None:
    """A link to a folder is not followed: inside ``root`` its pictures are found in their place."""
    if not folder.is_symlink() or folder.resolve().is_relative_to(root.resolve()):
        return None
    return _problem(folder, "folder outside its folder", "a link out of it", "copy the pictures into the folder")


def _problem(path: Path, kind: str, what: str, advice: str) -> Problem:
    return Problem(f"{kind}: {what}", advice, shown(path, 200))


def _unreadable(error: OSError) -> NoReturn:
    raise UserError(f"cannot be read: {error.strerror}", "correct its permissions", file=error.filename) from error
