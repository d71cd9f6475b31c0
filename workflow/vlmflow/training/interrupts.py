"""Being asked to stop: by Slurm before the time limit (SIGUSR1), by preemption, a shutdown or ``kill`` (SIGTERM)."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_SAME_REQUEST = 5.0
"""Seconds in which a repeated SIGTERM is the same request: the launcher passes on what Slurm sent to every process."""


@contextmanager
def interrupts(clock: Callable[[], float] = time.monotonic) -> Iterator[Callable[[], bool]]:
    """While the block runs, SIGTERM and SIGUSR1 only set a flag; the function that it yields tells whether it is set.

    A second SIGTERM, more than five seconds after the first, ends the process: a job that hangs can be ended. The
    shell of a rule ignores these signals, so what they did before the block is no guide. To be used in the main thread
    (Python runs signal handlers nowhere else).
    """
    terminated: list[float] = []
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        asked.append(number)
        if number != signal.SIGTERM:
            return
        terminated.append(clock())
        if terminated[-1] - terminated[0] > _SAME_REQUEST:
            before = previous[signal.SIGTERM]
            signal.signal(number, signal.SIG_DFL if before is signal.SIG_IGN else before)
            signal.raise_signal(number)

    previous = {number: signal.getsignal(number) for number in _SIGNALS}
    for number in _SIGNALS:
        signal.signal(number, note)
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def ignore_in_worker(worker: int = 0) -> None:
    """``worker_init_fn`` of a DataLoader: its processes leave these signals to the main process.

    Slurm and ``kill -- -GROUP`` signal every process; a worker that died of it would take the main process along
    before the state is saved. A worker ends by itself when the main process is gone.
    """
    del worker
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
