"""A working copy of the repository for tests that run the workflow, in a path with a space, as users have them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name != "MAKELEVEL"},  # as from a terminal, not from make
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
}
_PARTS = ("Snakefile", "workflow", "config", "envs", "profiles", "slurm", "data")


def copy_repository(parent: Path) -> Path:
    """Copy what a run needs to ``parent / "vlm flow"``."""
    target = parent / "vlm flow"
    target.mkdir()
    for name in _PARTS:
        source = ROOT / name
        if source.is_symlink():
            (target / name).symlink_to(source.readlink())
        elif source.is_dir():
            shutil.copytree(source, target / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target / name)
    return target


def snakemake(*arguments: str, folder: Path, check: bool = True) -> str:
    """Output of a snakemake call in ``folder``; a failure shows it whole."""
    done = subprocess.run(["snakemake", *arguments], cwd=folder, capture_output=True, text=True, env=ENVIRONMENT)
    output = done.stdout + done.stderr
    assert not check or done.returncode == 0, output
    assert check or done.returncode != 0, output
    return output


def jobs(output: str) -> dict[str, int]:
    """Rule -> number of jobs, from the table that snakemake prints; empty when there is nothing to do."""
    if "Job stats:" not in output:
        return {}
    table = output.split("Job stats:", 1)[1].split("\n\n", 1)[0]
    return {name: int(count) for name, count in re.findall(r"^(\w[\w-]*)\s+(\d+)$", table, re.MULTILINE)}
