"""Going on after Slurm's time limit, without anybody there."""

from __future__ import annotations

import os
import re
import subprocess


class SlurmJob:
    """The Slurm job that this process works in, in its present start (Slurm counts how often it started one again)."""

    def __init__(self, number: str) -> None:
        self.number = number
        self._restarts = self._field("Restarts")

    @classmethod
    def current(cls) -> SlurmJob | None:
        """None outside Slurm."""
        number = os.environ.get("SLURM_JOB_ID")
        return cls(number) if number else None

    def requeue(self) -> str:
        """Have Slurm start the job again, from its saved state; what became of it, in words.

        A job is asked to stop when its time limit is near (``--signal`` of the profile), and also when it is cancelled,
        preempted or loses its node. It still counts as running in the first case only: in the others Slurm has decided
        already whether it comes back, or has started it again.
        """
        if self._field("JobState") != "RUNNING" or self._field("Restarts") != self._restarts:
            return f"Slurm is ending job {self.number}; it was not asked to start it again"
        asked = _scontrol("requeue", self.number)
        if asked.returncode:
            return f"Slurm would not start job {self.number} again: {asked.stderr.strip()}; run snakemake again"
        return f"the time limit of job {self.number} is near: Slurm starts it again, from the saved state"

    def _field(self, name: str) -> str | None:
        found = re.search(rf"\b{name}=(\S+)", _scontrol("show", "job", "--oneliner", self.number).stdout)
        return found and found[1]


def _scontrol(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["scontrol", *arguments], capture_output=True, text=True, check=False)
