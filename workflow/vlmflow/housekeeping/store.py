"""A folder that workflows share: downloads and base models, each under a hash of everything that it depends on.

``STORE/STAGE/KEY`` is an artefact as its stage wrote it. Its files are read-only, since results are hard links to them.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlmflow.errors import UserError
from vlmflow.files import MANIFEST, MARKER, read_manifest, sha256_file, sha256_json, staged_directory
from vlmflow.housekeeping.sizes import MAKE_ROOM, check_room
from vlmflow.links import link_or_copy

_log = logging.getLogger(__name__)
_READ_ONLY = 0o444


def shared(store: Path | None, stage: str, key: dict[str, Any], output: Path, make: Callable[[], None]) -> None:
    """Make the artefact of the manifest ``output`` with ``make``, or take it from ``store``, and keep it there.

    ``key`` (JSON) holds everything that the artefact depends on. A store that cannot be written costs a warning.
    """
    if store is None:
        make()
        return
    entry = store.expanduser() / stage / sha256_json(key)
    if _whole(entry):
        _replace(output.parent, entry)
        _log.info("taken from the store: %s", entry)
        return
    make()
    try:
        _keep(output.parent, entry)
    except OSError as error:
        _log.warning("not kept in the store: %s: %s", error.filename or entry, error.strerror or error)


def content_of(place: Path) -> Any:
    """What tells the content of a file, or of a folder and its files, from any other's."""
    if place.is_file():
        return sha256_file(place)
    if (place / MANIFEST).is_file():
        return {name: entry["sha256"] for name, entry in read_manifest(place / MANIFEST)["files"].items()}
    files = (path for path in place.rglob("*") if path.is_file())
    return {path.relative_to(place).as_posix(): sha256_file(path) for path in files}


def _whole(entry: Path) -> bool:
    """Whether an entry is there with the content that its manifest lists; a damaged one is taken away."""
    if not entry.is_dir():
        return False
    try:
        read_manifest(entry / MANIFEST, verify=True)
        return True
    except (UserError, OSError) as error:
        damage = f"{error.problem.file}: {error.problem.reason}" if isinstance(error, UserError) else error
        _log.warning("damaged in the store, and made anew: %s", damage)
    damaged = _part(entry)
    try:
        entry.rename(damaged)
        shutil.rmtree(damaged, ignore_errors=True)
    except OSError as error:  # of another user, or gone meanwhile
        _log.warning("%s stays in the store: %s", entry, error.strerror)
    return False


def _keep(folder: Path, entry: Path) -> None:
    part = _part(entry)
    try:
        _fill(part, folder)
        for path in _files(part):
            if path.name != MANIFEST or path.parent != part:
                path.chmod(_READ_ONLY)
        part.rename(entry)  # fails if another workflow was faster
    except OSError:
        if not entry.is_dir():
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _replace(folder: Path, entry: Path) -> None:
    """Put an entry where its stage would have written it, with the care that the stage takes."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not _same_disk(folder.parent, entry):
        check_room(folder.parent, sum(file["bytes"] for file in read_manifest(entry / MANIFEST)["files"].values()))
    try:
        _put(folder, entry)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):  # which names the file in the store
            raise UserError("no space left on the disk", MAKE_ROOM, file=folder) from error
        raise


def _same_disk(one: Path, other: Path) -> bool:
    return one.stat().st_dev == other.stat().st_dev


def _put(folder: Path, entry: Path) -> None:
    if (entry / MARKER).exists():
        with staged_directory(folder) as directory:
            _fill(directory, entry)
        return
    part = _part(folder)
    try:
        _fill(part, entry)
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _fill(part: Path, source: Path) -> None:
    """Link what the manifest of ``source`` lists; copy the rest, which a stage or snakemake may touch."""
    part.mkdir(parents=True, exist_ok=True)
    listed = read_manifest(source / MANIFEST)["files"]
    for path in _files(source):
        name = path.relative_to(source).as_posix()
        (part / name).parent.mkdir(parents=True, exist_ok=True)
        if name in listed:
            link_or_copy(path, part / name)
        else:
            shutil.copyfile(path, part / name)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _part(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.{socket.gethostname()}-{os.getpid()}.part")
