"""The launcher on real GPUs: which ones a job gets, NCCL between its processes, and saving when asked to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from repository import ROOT

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]
LAUNCH = [sys.executable, str(ROOT / "workflow" / "scripts" / "launch.py")]
WHICH = (
    "import sys, torch; print(torch.cuda.device_count(), torch.cuda.get_device_properties(0).uuid, flush=True); input()"
)
SUM = """
import os, sys, time, torch
from vlmflow.cli import run
from vlmflow.errors import Interrupted, UserError
from vlmflow.training.interrupts import interrupts

def stage(seconds: float) -> None:
    with interrupts() as asked:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        torch.distributed.init_process_group("nccl")
        total = torch.ones((), device="cuda")
        torch.distributed.all_reduce(total)
        uuid = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
        sys.stdout.write(f"{int(total)} {uuid}\\n")  # at once: the other process writes to the same pipe
        sys.stdout.flush()
        if seconds < 0:
            raise UserError("nothing but a test")
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            stop = torch.tensor(int(asked()), device="cuda")
            torch.distributed.all_reduce(stop, torch.distributed.ReduceOp.MAX)
            if stop:
                torch.distributed.destroy_process_group()
                raise Interrupted(1)
            time.sleep(0.05)
        torch.distributed.destroy_process_group()

run(stage)
"""


def start(*arguments: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "workflow"), environment.get("PYTHONPATH", "")])
    pipe = subprocess.PIPE
    return subprocess.Popen([*LAUNCH, *arguments], stdin=pipe, stdout=pipe, text=True, env=environment)


def test_jobs_side_by_side_have_gpus_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "which.py").write_text(WHICH)
    jobs = [start("--gpus", "1", "--", str(tmp_path / "which.py")) for _ in range(2)]
    said = [job.stdout.readline().split() for job in jobs if job.stdout]
    for job in jobs:
        job.communicate("\n", timeout=60)
    assert [count for count, _ in said] == ["1", "1"]
    assert len({uuid for _, uuid in said}) == 2


@pytest.mark.parametrize("stopped", [False, True])
def test_processes_share_one_training_over_nccl(tmp_path: Path, stopped: bool) -> None:
    (tmp_path / "sum.py").write_text(SUM)
    job = start(
        "--gpus", "2", "--processes", "2", "--", str(tmp_path / "sum.py"), "--seconds", "60" if stopped else "0"
    )
    assert job.stdout
    said = [job.stdout.readline().split() for _ in range(2)]
    assert [total for total, _ in said] == ["2", "2"]
    assert len({uuid for _, uuid in said}) == 2
    if stopped:
        time.sleep(0.5)
        job.send_signal(signal.SIGTERM)
    job.communicate("\n", timeout=60)
    assert job.returncode == (75 if stopped else 0)


def test_a_failed_training_ends_at_once(tmp_path: Path) -> None:
    (tmp_path / "sum.py").write_text(SUM)
    job = start("--gpus", "2", "--processes", "2", "--", str(tmp_path / "sum.py"), "--seconds", "-1")
    job.communicate("", timeout=60)
    assert job.returncode == 1
