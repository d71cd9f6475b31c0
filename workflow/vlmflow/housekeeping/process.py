"""Processes as a file can name them: which machine, which user, which start of which number."""

from __future__ import annotations

import getpass
import os
import socket
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psutil

RUN = "VLMFLOW_RUN"
"""Environment variable that every process of a run on this machine inherits; it names the run."""
_SAME_START = 2.0  # seconds by which the start of a process may seem to differ when the clock is corrected
_GRACE = 2.0  # seconds that processes have to end after their run


@dataclass(frozen=True)
class Process:
    """``started`` is in seconds since 1970, so that a number which came round again is another process."""

    host: str
    user: str
    pid: int
    started: float

    @classmethod
    def this(cls) -> Process:
        return cls(socket.gethostname(), user(), os.getpid(), psutil.Process().create_time())

    @classmethod
    def of(cls, record: Any) -> Process | None:
        """What a lock file says; None if it says nothing that makes sense."""
        try:
            return cls(record["host"], record["user"], int(record["pid"]), float(record["started"]))
        except (TypeError, KeyError, ValueError):
            return None

    @property
    def run(self) -> str:
        """The value of :data:`RUN` in its children."""
        return f"{self.host}-{self.pid}-{self.started:.2f}"

    @property
    def local(self) -> bool:
        return self.host == socket.gethostname()

    def alive(self) -> bool:
        """Whether it runs; one of another machine, which cannot be asked, counts as running."""
        if not self.local:
            return True
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started) < _SAME_START
        except psutil.NoSuchProcess:
            return False

    def survivors(self) -> list[int]:
        """Numbers of the processes that it started on this machine and that still work, seconds after its end."""
        left = [process for process in psutil.process_iter() if self.local and self._started_by_it(process)]
        return sorted(process.pid for process in psutil.wait_procs(left, timeout=_GRACE)[1])

    def _started_by_it(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(RUN) == self.run and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:  # gone, or of another user
            return False

    def __str__(self) -> str:
        return f"process {self.pid} of {self.user} on {self.host}, started {moment(self.started)}"


def user() -> str:
    """The name of the user, or the number where it has none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def moment(seconds: float) -> str:
    """A time of day with its date, as people write it."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")
