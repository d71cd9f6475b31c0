"""GPUs of a workstation, handed out so that two jobs never share one."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from vlmflow.errors import UserError

VISIBLE = "CUDA_VISIBLE_DEVICES"
_LOCKS = Path("/tmp/vlmflow-gpus")  # not TMPDIR, which may be another one in each job


@contextmanager
def granted(count: int, locks: Path = _LOCKS, patience: float = 2.0) -> Iterator[list[str]]:
    """``count`` GPUs that no other job of this machine holds, for CUDA_VISIBLE_DEVICES; waits for them.

    One lock file per GPU serves all users of the machine; the kernel lets go of it when the last process of a job is
    gone. Under Slurm the grant is Slurm's and nothing is locked. Where there is no GPU at all the list is empty: the
    job runs on the CPU. Looks again every ``patience`` seconds. Raises :class:`UserError` if the machine has too few.
    """
    here = _present() if count else []
    if not here or "SLURM_JOB_ID" in os.environ:
        yield here
        return
    if len(here) < count:
        raise UserError(
            f"the stage asks for {count} GPUs and there are {len(here)} ({', '.join(here)})",
            "lower `gpu` under its `resources`",
        )
    locked = _wait(count, here, locks, patience)
    try:
        yield [name for name, _ in locked]
    finally:
        _close(locked)


def _present() -> list[str]:
    """The GPUs that CUDA may use, by nvidia-smi's numbers (DeepSpeed cannot read UUIDs), each once."""
    all_of_them = _installed()
    visible = os.environ.get(VISIBLE)
    if visible is None:
        return list(all_of_them)
    found = []
    for name in (name.strip() for name in visible.split(",")):
        if not name or name.startswith("-"):
            break  # CUDA ignores what comes after
        number = str(int(name)) if name.isdecimal() else None
        found.append(number or next((key for key, uuid in all_of_them.items() if uuid.startswith(name)), name))
    return list(dict.fromkeys(found))


def _installed() -> dict[str, str]:
    """Number -> UUID."""
    query = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return {}
    return dict(line.split(", ", 1) for line in listed.splitlines())


def _wait(count: int, here: list[str], locks: Path, patience: float) -> list[tuple[str, IO[str]]]:
    """All or none, so that two jobs which wait never hold what the other needs."""
    told = False
    while True:
        locked: list[tuple[str, IO[str]]] = []
        for name in here:
            stream = _lock(locks / f"{name}.lock") if len(locked) < count else None
            locked += [(name, stream)] if stream else []
        if len(locked) == count:
            return locked
        _close(locked)
        if not told:
            print(f"waiting for {count} of the GPUs {', '.join(here)}: other jobs hold them", file=sys.stderr)
            told = True
        time.sleep(patience)


def _lock(path: Path) -> IO[str] | None:
    """The locked file, or None while another job has it. A child that inherits it keeps the lock."""
    if not path.parent.is_dir():
        path.parent.mkdir(exist_ok=True)
        path.parent.chmod(0o1777)  # as /tmp itself
    stream = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+")
    with suppress(PermissionError):
        path.chmod(0o666)  # whatever the umask of the first user; only they may
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        return None
    os.set_inheritable(stream.fileno(), True)
    return stream


def _close(locked: list[tuple[str, IO[str]]]) -> None:
    for _, stream in locked:
        stream.close()
