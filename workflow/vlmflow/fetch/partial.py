"""What a cut download leaves for the next run: a folder beside the output that is never taken for it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmflow.files import sha256_json, write_text

_NOT_CONTENT = ("files", "patterns", "unpack", "prepare")  # keys that choose among files but change none


@dataclass(frozen=True)
class Partial:
    """``files`` holds whole files under their final names, ``state`` whatever is needed to go on; ``previous`` is the
    folder of an earlier fetch that may be there."""

    files: Path
    state: Path
    previous: Path


@dataclass(frozen=True)
class Fetched:
    """Names of the files that belong to the source, and what identifies it in the manifest; never a secret."""

    names: Iterable[str]
    facts: dict[str, Any] = field(default_factory=dict)


@contextmanager
def partial_directory(output: Path, config: dict[str, Any]) -> Iterator[Partial]:
    """The folder ``.NAME.part`` beside ``output``, as an earlier failed or killed run of the same source left it.

    It is emptied when it is of another source, and removed when the block ends, or fails before anything was fetched.
    """
    part = output.with_name(f".{output.name}.part")
    mark, partial = part / "config", Partial(part / "files", part / "state", output)
    key = sha256_json({name: value for name, value in config.items() if name not in _NOT_CONTENT})
    if not mark.is_file() or mark.read_text() != key:
        shutil.rmtree(part, ignore_errors=True)
    for folder in (partial.files, partial.state):
        folder.mkdir(parents=True, exist_ok=True)
    write_text(mark, key)
    try:
        yield partial
    except BaseException:
        started = [*partial.files.rglob("*"), *partial.state.glob("*.part"), *partial.state.glob("*.whl")]
        if not any(path.is_file() for path in started):
            shutil.rmtree(part, ignore_errors=True)
        raise
    shutil.rmtree(part, ignore_errors=True)


def prune(folder: Path, names: Iterable[str]) -> None:
    """Delete every file below ``folder`` but ``names``: left-overs of clients and of earlier configurations."""
    kept = set(names)
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.relative_to(folder).as_posix() not in kept:
            path.unlink()


def start_anew_unless(partial: Partial, version: str) -> None:
    """Forget what was fetched unless it is of the same ``version``, such as a commit."""
    mark = partial.state / "version"
    if mark.is_file() and mark.read_text() != version:
        shutil.rmtree(partial.files)
        partial.files.mkdir()
    write_text(mark, version)
