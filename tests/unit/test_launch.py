"""workflow/scripts/launch.py: processes, GPUs that no two jobs share, requests to stop, Slurm's requeue."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from repository import ROOT
from vlmflow.cluster.gpus import granted
from vlmflow.cluster.requeue import SlurmJob
from vlmflow.errors import UserError

LAUNCH = str(ROOT / "workflow" / "scripts" / "launch.py")
STAGE = """
import os, signal, sys, time
asked = []
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, _: asked.append(number))
says = [os.environ.get("RANK", "-"), os.environ.get("WORLD_SIZE", "-"), os.environ["CUDA_VISIBLE_DEVICES"]]
os.write(1, (" ".join(says) + "\\n").encode())  # at once: the other process writes to the same pipe
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end and not asked:
    time.sleep(0.02)
if asked:
    time.sleep(0.5)  # saving
    os.write(1, b"saved\\n")
sys.exit(75 if asked else int(sys.argv[2]))
"""


@pytest.fixture
def stage(tmp_path: Path) -> str:
    path = tmp_path / "stage.py"
    path.write_text(STAGE)
    return str(path)


def environment(visible: str = "", **more: str) -> dict[str, str]:
    outside = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    return {**outside, "CUDA_VISIBLE_DEVICES": visible, **more}


def launch(*arguments: str, **more: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    command = [sys.executable, LAUNCH, *arguments]
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment(**more))


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


def test_the_status_of_one_process_is_kept(stage: str) -> None:
    status, output, errors = ended(launch("--", stage, "0", "3"))
    assert (status, output.split(), errors) == (3, ["-", "-"], "")


def test_processes_are_ranks_of_one_training(stage: str) -> None:
    status, output, errors = ended(launch("--processes", "2", "--", stage, "0", "0"))
    assert (status, sorted(output.split("\n"))) == (0, ["", "0 2 ", "1 2 "]), errors


def test_a_failing_process_is_named_in_one_line(stage: str) -> None:
    status, _, errors = ended(launch("--processes", "2", "--", stage, "0", "3"))
    assert status == 3
    assert errors.count("\n") == 1 and "was the first to end, with status 3" in errors


@pytest.mark.parametrize("processes", ["1", "2"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_request_to_stop_reaches_every_process_and_is_waited_for(
    stage: str, processes: str, number: signal.Signals
) -> None:
    process = launch("--processes", processes, "--", stage, "60", "0")
    assert process.stdout is not None
    for _ in range(int(processes)):
        process.stdout.readline()
    time.sleep(0.2)
    process.send_signal(number)
    status, output, _ = ended(process)
    assert status == 75
    assert output.count("saved") == int(processes)


def test_two_jobs_never_share_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 5,6")
    with granted(2, tmp_path) as first, granted(1, tmp_path) as second:
        assert (first, second) == (["4", "5"], ["6"])
    with granted(3, tmp_path) as all_of_them:
        assert all_of_them == ["4", "5", "6"]


@pytest.mark.parametrize(
    ("visible", "found"),
    [("2, 0", ["2", "0"]), ("GPU-bb,01", ["1"]), ("0,0", ["0"]), ("0,-1,2", ["0"]), ("-1", []), ("", []),
     (None, ["0", "1", "2"])],
)  # fmt: skip
def test_a_gpu_has_one_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, found: list[str]
) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\nprintf '0, GPU-aa1\\n1, GPU-bb2\\n2, GPU-cc3\\n'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with granted(len(found) or 1, tmp_path / "locks") as gpus:
        assert gpus == found


def test_a_job_waits_for_gpus_and_takes_none_meanwhile(tmp_path: Path) -> None:
    code = "import sys, time; from pathlib import Path; from vlmflow.cluster.gpus import granted\n"
    code += "with granted(int(sys.argv[1]), Path(sys.argv[2]), 0.05) as mine: print(*mine, flush=True); input()"
    command = [sys.executable, "-c", code]
    known = environment("0,1", PYTHONPATH=str(ROOT / "workflow"))

    def job(count: int) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen([*command, str(count), str(tmp_path)], stdin=pipe, stdout=pipe, stderr=pipe, text=True,
                                env=known)  # fmt: skip

    first = job(1)
    assert first.stdout is not None and first.stdout.readline() == "0\n"
    both = job(2)
    assert both.stderr is not None and "waiting for 2 of the GPUs 0, 1" in both.stderr.readline()
    assert job(1).communicate("\n")[0] == "1\n", "the one that waits holds none"
    first.kill()
    first.wait()
    assert both.communicate("\n", timeout=20)[0] == "0 1\n", "the kernel lets go of a killed job's GPU"


def test_more_gpus_than_there_are_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(UserError, match=r"asks for 2 GPUs and there are 1 \(0\)"), granted(2, tmp_path):
        pass


def test_under_slurm_the_grant_is_slurms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with granted(2, tmp_path) as one, granted(2, tmp_path) as other:
        assert one == other == ["0", "1"], "two jobs' numbers are of their own cgroups"
    assert not list(tmp_path.iterdir())


def test_without_any_gpu_the_cpu_is_used_and_said_so(stage: str) -> None:
    status, _, errors = ended(launch("--gpus", "1", "--", stage, "0", "0"))
    assert status == 0
    assert errors == "GPUs asked for: 1; there is none, so this runs on the CPU\n"


def test_nodes_need_slurm(stage: str) -> None:
    status, _, errors = ended(launch("--nodes", "2", "--", stage, "0", "0"))
    assert status == 1 and errors.startswith("error: several nodes are started through Slurm")


@pytest.mark.parametrize(
    ("state", "restarts", "answer", "told", "requeued"),
    [
        ("RUNNING", 1, 0, "the time limit of job 7 is near: Slurm starts it again", True),
        ("RUNNING", 1, 1, "Slurm would not start job 7 again: disabled", True),
        ("RUNNING", 2, 0, "Slurm is ending job 7", False),
        ("CANCELLED", 1, 0, "Slurm is ending job 7", False),
        ("PREEMPTED", 1, 0, "Slurm is ending job 7", False),
    ],
)
def test_only_a_job_whose_time_is_up_is_requeued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, restarts: int, answer: int, told: str, requeued: bool
) -> None:
    scontrol = tmp_path / "scontrol"

    def slurm_says(state: str, restarts: int) -> None:
        scontrol.write_text(
            f"#!/bin/sh\ncase $1 in show) echo JobId=7 JobState={state} Reason=None Requeue=1 Restarts={restarts};;\n"
            f"requeue) echo $2 >> {tmp_path}/asked; echo disabled >&2; exit {answer};; esac\n"
        )
        scontrol.chmod(0o755)

    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    slurm_says("RUNNING", 1)
    job = SlurmJob.current()
    assert job is not None
    slurm_says(state, restarts)
    assert job.requeue().startswith(told)
    assert (tmp_path / "asked").exists() == requeued


def test_outside_slurm_there_is_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert SlurmJob.current() is None
