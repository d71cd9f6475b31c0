"""Sizes of files and folders on the disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from vlmflow.errors import UserError

MAKE_ROOM = "make room (snakemake disk says where), or let `results` be on another disk"
_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def size_of(path: Path, seen: set[tuple[int, int]]) -> int:
    """Bytes on the disk of a file or folder, less the files (device, number) in ``seen``, to which it adds these."""
    size = 0
    for file in _files(path):
        state = os.lstat(file)
        identity = (state.st_dev, state.st_ino)
        if identity not in seen:
            seen.add(identity)
            size += state.st_blocks * 512
    return size


def _files(path: Path) -> Iterator[str]:
    if not path.is_dir():
        yield str(path)
    for folder, _, names in os.walk(path):
        yield from (os.path.join(folder, name) for name in names)  # noqa: PTH118


def bytes_as_text(size: float) -> str:
    """Decimal units, as disks are sold: 1.2 GB."""
    return next((f"{size / unit:.1f} {name}" for unit, name in _UNITS if size >= unit), f"{size:.0f} B")


def check_room(folder: Path, size: int) -> None:
    """Raise :class:`UserError` if what goes into ``folder`` takes more bytes than are free there."""
    free = shutil.disk_usage(folder).free
    if size > free:
        reason = f"{bytes_as_text(size)} are to be written, and {bytes_as_text(free)} of the disk are free"
        raise UserError(reason, MAKE_ROOM, file=folder.parent)
