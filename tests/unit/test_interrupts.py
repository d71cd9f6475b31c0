"""Signals that ask training to stop set a flag; a job that does not react can still be ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from vlmflow.training.interrupts import ignore_in_worker, interrupts

PACKAGE = Path(__file__).resolve().parents[2] / "workflow"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_sets_the_flag_and_nothing_else(number: signal.Signals) -> None:
    with interrupts() as asked:
        assert not asked()
        os.kill(os.getpid(), number)
        assert asked()


def test_handlers_are_as_before_afterwards_even_after_an_error() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    with pytest.raises(ValueError, match="training"), interrupts():
        assert signal.getsignal(signal.SIGTERM) != before[0]
        raise ValueError("training")
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == before


def test_a_second_request_to_end_goes_to_the_handler_before() -> None:
    """Repeated at once it is the same request, as when Slurm and torchrun both send it."""
    ended: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda number, _: ended.append(number))
    now = 100.0
    try:
        with interrupts(clock=lambda: now):
            signal.raise_signal(signal.SIGUSR1)
            signal.raise_signal(signal.SIGTERM)
            now = 101.0
            signal.raise_signal(signal.SIGTERM)
            assert ended == []
            now = 106.0
            signal.raise_signal(signal.SIGUSR1)
            assert ended == []
            signal.raise_signal(signal.SIGTERM)
            assert ended == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_a_process_that_hangs_ends_by_the_second_request() -> None:
    program = (
        "import itertools, time\n"
        "from vlmflow.training.interrupts import interrupts\n"
        "with interrupts(clock=itertools.count(0, 10).__next__):\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(PACKAGE)}, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.terminate()
    time.sleep(0.2)
    assert process.poll() is None
    process.terminate()
    assert process.wait(10) == -signal.SIGTERM


class Slow(torch.utils.data.Dataset[int]):
    """Samples that take a moment, so that a signal meets workers at work."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        time.sleep(0.05)
        return index


def test_a_signal_to_the_whole_group_leaves_the_workers_at_work() -> None:
    """Without ``ignore_in_worker`` the DataLoader raises: a worker "is killed by signal: Terminated"."""
    loader = torch.utils.data.DataLoader(Slow(), batch_size=None, num_workers=2, worker_init_fn=ignore_in_worker)
    seen = []
    with interrupts() as asked:
        for index in loader:
            seen.append(int(index))
            if len(seen) == 2:
                for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
                    os.kill(int(child), signal.SIGTERM)
                    os.kill(int(child), signal.SIGUSR1)
                os.kill(os.getpid(), signal.SIGTERM)
        assert asked()
    assert seen == list(range(8))
