"""Cluster jobs that outlived the snakemake that submitted them."""

from __future__ import annotations

import logging
import subprocess

from vlmflow.errors import UserError

_log = logging.getLogger(__name__)
_SECONDS = 60


def refuse_leftovers(tag: str) -> None:
    """Raise :class:`UserError` if own Slurm jobs whose name begins with ``tag`` are queued or running.

    Snakemake submitted them in an earlier run and does not know them any more; it would submit them once more.
    """
    command = ["squeue", "--me", "--noheader", "--format=%i|%j|%k"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        _log.warning("squeue does not say whether jobs of an earlier run are left: %s", error)
        return
    rows = [line.split("|", 2) for line in done.stdout.splitlines() if line.count("|") >= 2]
    jobs = {number: comment for number, name, comment in rows if name.startswith(tag)}
    if jobs:
        named = ", ".join(f"{number} ({comment.removeprefix('rule_')})" for number, comment in jobs.items())
        raise UserError(
            f"Slurm still has jobs of an earlier run, whose snakemake is gone: {named}",
            "wait until they are done and start again, or end them: scancel " + " ".join(jobs),
        )
