"""A working copy of the repository for tests that run the workflow, in a path with a space, as users have them."""

from __future__ import annotations

import atexit
import functools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name != "MAKELEVEL"},  # as from a terminal, not from make
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
}
TINY = ("--configfile", "config/recipes/tiny.yaml")
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
    with tempfile.NamedTemporaryFile() as output, socket.socket(socket.AF_UNIX) as connection:
        request = {"arguments": arguments, "folder": str(folder), "environment": ENVIRONMENT, "output": output.name}
        connection.connect(_server())
        connection.sendall(json.dumps(request).encode() + b"\n")
        status = connection.recv(8)
        text = output.read().decode()
    assert not check or status == b"0", text
    assert check or status != b"0", text
    return text


@functools.cache
def _server() -> str:
    """Where snakemake_server.py listens, in a process that ends with this one."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    command = [sys.executable, Path(__file__).with_name("snakemake_server.py"), f"{folder}/socket"]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT)
    atexit.register(server.communicate)
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    return f"{folder}/socket"


def jobs(output: str) -> dict[str, int]:
    """Rule -> number of jobs, from the table that snakemake prints; empty when there is nothing to do."""
    if "Job stats:" not in output:
        return {}
    table = output.split("Job stats:", 1)[1].split("\n\n", 1)[0]
    return {name: int(count) for name, count in re.findall(r"^(\w[\w-]*)\s+(\d+)$", table, re.MULTILINE)}
