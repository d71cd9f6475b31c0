"""A snakemake that submits jobs from a folder of its own, and what Slurm and the machine know of them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from repository import ENVIRONMENT
from slurm.cluster import output

TRAINED = "results/tiny/finetune/qlora/manifest.json"
CONFIGURATION = ("--configfile", "config/recipes/tiny.yaml", "config/test.yaml")
PATIENCE = 1200
"""Seconds that anything may take, on a machine that is busy with other things."""
_ACCOUNTED = ("Comment", "State", "ReqMem", "AllocTRES", "NodeList", "WorkDir")


@dataclass
class Allocation:
    """What Slurm's accounting has of one start of a job."""

    rule: str
    state: str
    memory: int
    """MB asked for."""
    granted: dict[str, str]
    """cpu, mem, node and gres/gpu."""
    nodes: str


@dataclass
class Submitted:
    """``snakemake --profile slurm`` in ``folder``, a copy of the repository, started and started again."""

    folder: Path

    def start(self, *options: str, targets: tuple[str, ...] = (TRAINED,)) -> None:
        """Start the controller in a session of its own, as a terminal would; it runs on in the background."""
        quick = ("--slurm-init-seconds-before-status-checks", "2", "--latency-wait", "5")
        command = ["snakemake", "--profile", "slurm", *quick, *options, *CONFIGURATION, "--", *targets]
        environment = {**ENVIRONMENT, "OMP_NUM_THREADS": "1"}
        with self._log.open("a") as log:
            self._controller = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def finish(self) -> tuple[int, str]:
        """Wait for the controller; its status, and what the user saw."""
        try:
            return self._controller.wait(PATIENCE), self.seen
        except subprocess.TimeoutExpired:
            raise AssertionError(self.seen) from None

    def interrupt(self) -> None:
        """Ctrl-C."""
        os.killpg(self._controller.pid, signal.SIGINT)

    def stop(self) -> None:
        """End what a failed test has left running."""
        if self._controller.poll() is None:
            self.interrupt()
            self._controller.wait()

    @property
    def seen(self) -> str:
        """What the user has seen so far."""
        return self._log.read_text()

    @property
    def _log(self) -> Path:
        return self.folder / "seen.log"

    def pause_training(self) -> tuple[str, int]:
        """Stop the training processes once they have saved a checkpoint; the job's number and the step saved.

        So that what the test does next meets a training that is not over, on a machine of any speed. Slurm continues
        stopped processes before it signals them.
        """
        self._meanwhile("a checkpoint", self._saved_steps)
        for process in self.processes("train_adapter.py"):
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        return self.queued()[0], self._saved_steps()

    def node(self, job: str) -> str:
        """Where a job runs."""
        return output("squeue", "--noheader", "--format=%N", f"--jobs={job}")

    @property
    def results(self) -> Path:
        return self.folder / "results" / "tiny"

    def _saved_steps(self) -> int:
        """The step of the latest checkpoint; 0 if there is none."""
        found = self.results.glob("checkpoints/finetune/qlora/*/checkpoint-*")
        return max((int(path.name.removeprefix("checkpoint-")) for path in found), default=0)

    def hurry(self, job: str, *changes: str) -> None:
        """Start a requeued job, once its processes are gone, without the two minutes that Slurm waits."""

        def pending() -> bool:
            return output("squeue", "--noheader", "--format=%T", f"--jobs={job}") == "PENDING"

        self._meanwhile("the job to be requeued", lambda: pending() and not self.processes("launch.py"))
        output("scontrol", "update", f"jobid={job}", "starttime=now", *changes)

    def queued(self) -> list[str]:
        """Numbers of this folder's jobs that wait or run."""
        lines = output("squeue", "--noheader", "--format=%A|%Z").splitlines()
        return [line.split("|")[0] for line in lines if line.split("|")[1] == str(self.folder)]

    def allocations(self) -> list[Allocation]:
        """Every start of this folder's jobs, in the order of their start."""
        options = ("--duplicates", "--allocations", "--noheader", "--parsable2", f"--format={','.join(_ACCOUNTED)}")
        rows = [line.split("|") for line in output("sacct", *options).splitlines()]
        return [
            Allocation(
                comment.removeprefix("rule_").split("_wildcards_")[0],
                state.split()[0],  # CANCELLED by 0
                int(memory.rstrip("M")),
                dict(part.split("=") for part in granted.split(",") if part),
                nodes,
            )
            for comment, state, memory, granted, nodes, folder in rows
            if folder == str(self.folder)
        ]

    def processes(self, script: str = "") -> list[psutil.Process]:
        """Processes that work in this folder, or those of them that run ``script``."""
        return [
            process
            for process in psutil.process_iter(["cwd", "cmdline", "status"])
            if process.info["cwd"] == str(self.folder)
            and process.info["status"] != psutil.STATUS_ZOMBIE
            and script in " ".join(process.info["cmdline"][1:2])
        ]

    def nothing_is_left(self) -> None:
        """Fails if a job of this folder is queued or a process works in it, once Slurm has had the time to kill."""
        self._wait("jobs and processes to end", lambda: not self.queued() and not self.processes(), seconds=30)

    def _meanwhile(self, what: str, there: Callable[[], object]) -> None:
        """Wait for something that happens while the controller runs."""
        self._wait(what, lambda: there() or self._controller.poll() is not None, PATIENCE)
        assert there(), self.seen

    def _wait(self, what: str, there: Callable[[], object], seconds: float) -> None:
        end = time.monotonic() + seconds
        while not there():
            assert time.monotonic() < end, f"waited {seconds} s for {what}; {self.processes()}\n{self.seen}"
            time.sleep(0.2)
