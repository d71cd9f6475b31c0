"""Going on after Slurm's time limit, without anybody there."""

from __future__ import annotations

import os
import re
import subprocess


def requeue() -> str:
    """Have Slurm start this job again, from its saved state; what happened, in words ("" outside Slurm).

    A job is asked to stop when its time limit is near (``--signal`` of the profile), and also when it is cancelled,
    preempted or loses its node. Slurm says RUNNING in the first case only: in the others it has decided already
    whether the job comes back.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return ""
    state = _scontrol("show", "job", "--oneliner", job)
    if re.search(r"\bJobState=RUNNING\b", state.stdout) is None:
        return f"Slurm is ending job {job}; it was not asked to start it again"
    asked = _scontrol("requeue", job)
    if asked.returncode:
        return f"Slurm would not start job {job} again: {asked.stderr.strip()}; run snakemake again"
    return f"the time limit of job {job} is near: Slurm starts it again, from the saved state"


def _scontrol(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["scontrol", *arguments], capture_output=True, text=True, check=False)
