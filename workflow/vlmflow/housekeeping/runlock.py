"""A lock for the time of a run. It ends with its process, however that ends, and says who holds it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO

from vlmflow.errors import UserError
from vlmflow.housekeeping.process import RUN, Process

_HELD = {errno.EAGAIN, errno.EACCES}
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}
_SETTLED = 0.5  # seconds after which two runs that started at once both see what the file says


@contextmanager
def locked(path: Path, check: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock file ``path`` while the block runs; ``check`` is called first, and may refuse.

    The kernel releases the lock when the process dies. Where the file system has no locks, a file that names the
    process stands for one, until that process is found dead. Raises :class:`UserError` if another run holds the lock,
    or if processes of one that was killed still work.
    """
    with _opened(path) as stream:
        holder = _holder(path)  # before it is locked: closing any other open file of this path would unlock it
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locks = True
        except OSError as error:
            locks = error.errno not in _NO_LOCKS
            if error.errno in _HELD or (not locks and holder is not None and holder.alive()):
                raise _busy(holder, path) from None
            if locks:
                raise
        check()
        if holder is not None:
            _refuse_survivors(holder, path)
        with _signed(stream):
            if not locks:
                time.sleep(_SETTLED)
                if _holder(path) != Process.this():
                    raise _busy(_holder(path), path)
            yield


@contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", "name a folder that can", file=path.parent) from None
    with stream:
        yield stream


@contextmanager
def _signed(stream: IO[str]) -> Iterator[None]:
    """The lock file names this process, and so do the environments of those that it starts."""
    holder = Process.this()
    stream.truncate(0)
    stream.write(json.dumps(asdict(holder)))
    stream.flush()
    os.environ[RUN] = holder.run
    try:
        yield
    finally:
        del os.environ[RUN]
        stream.truncate(0)


def _holder(path: Path) -> Process | None:
    """Who wrote itself into the lock file; None after a run that ended as it should."""
    with suppress(ValueError):
        return Process.of(json.loads(path.read_text(encoding="utf-8")))
    return None


def _busy(holder: Process | None, path: Path) -> UserError:
    gone = f"; if it is gone for good, delete {path}" if holder is not None and not holder.local else ""
    reason = f"another run writes here: {holder or 'its process is not known'}"
    return UserError(reason, f"wait until it is done, or stop it{gone}", file=path.parent.parent)


def _refuse_survivors(holder: Process, path: Path) -> None:
    pids = " ".join(map(str, holder.survivors()))
    if pids:
        raise UserError(
            f"jobs of a run that was killed still work: process {pids}",
            f"wait until they are done, or: kill {pids}",
            file=path.parent.parent,
        )
