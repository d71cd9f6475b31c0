"""Where a picture or video that an annotation names may lie: below its folder, and nowhere else."""

from __future__ import annotations

import bisect
import difflib
import functools
from pathlib import Path, PurePosixPath

from vlmflow.data.report import shown
from vlmflow.errors import Problem

_NEIGHBOURS = 100  # names on either side, in alphabetical order, that a missing name is compared with


def locate(root: Path, name: str, what: str) -> Path | Problem:
    """The file ``name`` below ``root``, or what is wrong with it; ``what`` is picture or video.

    Nothing outside ``root`` is looked at. May raise :class:`OSError` for names that no file can have.
    """
    path = root / name
    pure = PurePosixPath(name)

    def problem(reason: str, advice: str) -> Problem:
        return Problem(reason, advice, shown(path, 200))

    if pure.is_absolute() or ".." in pure.parts:
        return problem(f"{what} outside its folder: {shown(name)}", "name it relative to `images`, without '..'")
    if not path.exists():
        return problem(f"missing {what}: {shown(name)}", suggestion(path, root))
    if (path.is_symlink() or path.parent != root) and not path.resolve().is_relative_to(root.resolve()):
        advice = "copy it into the folder, or let `images` name the folder that it is in"
        return problem(f"{what} outside its folder: {shown(name)} is a link out of it", advice)
    if not path.is_file():
        return problem(f"no file: {shown(name)} is a folder or device", f"name a {what}")
    if not path.stat().st_size:
        return problem(f"empty {what}: {shown(name)} has no bytes", "copy it again")
    return path


def suggestion(path: Path, root: Path) -> str:
    """What a missing file could have been: other case, other suffix, a similar name in its folder."""
    folder = path.parent
    if "\\" in path.name:
        return "write folders with '/', not '\\'"
    while not folder.is_dir() and folder != root and folder != folder.parent:
        path, folder = folder, folder.parent
    if not folder.is_dir():
        return f"there is no folder {shown(folder)}"
    if path.is_symlink():
        return "it is a link that leads nowhere; copy the file itself"
    names = _listing(folder, folder.stat().st_mtime_ns)
    here = bisect.bisect(names, path.name.lower(), key=str.lower)
    close = names[max(0, here - _NEIGHBOURS) : here + _NEIGHBOURS]
    stem = [other for other in close if Path(other).stem.lower() == path.stem.lower()]
    near = stem or difflib.get_close_matches(path.name, close, n=1)
    if near:
        return f"did you mean '{shown(near[0])}'?"
    return (
        f"the folder {shown(folder)} has {len(names)} other files" if names else f"the folder {shown(folder)} is empty"
    )


@functools.lru_cache(maxsize=64)
def _listing(folder: Path, _changed: int) -> list[str]:
    """Names in a folder, sorted whatever their case, read once as long as it does not change."""
    return sorted((entry.name for entry in folder.iterdir()), key=str.lower)
