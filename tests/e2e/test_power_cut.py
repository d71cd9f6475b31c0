"""What is left of a run that was killed does not stand in the way of the next, and one that works is left alone."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from repository import ENVIRONMENT, copy_repository, snakemake
from vlmflow.files import read_manifest, write_json

_DATASET = {"path": "data/tiny/hold", "annotations": "all.json", "split": {"validation": 0, "test": 0}}
_WEIGHTS = {"path": "data/tiny/language"}
CONFIG = {
    "datasets": {"a": _DATASET, "b": {**_DATASET, "limit": 1}},
    "models": {"tiny": {"family": "llava", "language": _WEIGHTS, "vision": _WEIGHTS}},
    "finetunes": {"second": {"init": "tiny", "datasets": ["a"]}},
    "evaluations": {"c": {"dataset": "b", "split": "train"}},
    "experiments": {"one": {"finetune": "second", "evaluations": ["c"]}},
}
MANIFESTS = ("results/data/a/manifest.json", "results/data/b/manifest.json")
ARGUMENTS = ("data", "--cores", "1", "--configfile", "power.yaml")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A workflow with two data sets of a picture, whose jobs wait as long as there is a file ``hold``."""
    folder = copy_repository(tmp_path)
    (folder / "power.yaml").write_text(yaml.safe_dump(CONFIG))
    data = folder / "data" / "tiny" / "hold"
    data.mkdir()
    shutil.copy(Path(__file__).parents[2] / "docs" / "report.png", data / "a.png")
    turns = '[{"from": "human", "value": "<image>\\nWhat?"}, {"from": "gpt", "value": "A page."}]'
    (data / "all.json").write_text(f'[{{"id": "1", "image": "a.png", "conversations": {turns}}}]')
    python = folder / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nwhile [ -e hold ]; do sleep 0.1; done\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return folder


@pytest.fixture
def run(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A run in whose second job nothing happens until the file ``hold`` is gone."""
    environment = {**ENVIRONMENT, "PATH": f"{folder / 'bin'}:{ENVIRONMENT['PATH']}"}
    with (folder / "run.log").open("w") as log:
        process = subprocess.Popen(
            ["snakemake", *ARGUMENTS], cwd=folder, env=environment, stderr=log, start_new_session=True
        )
    while not list((folder / "results" / "data").glob("*/manifest.json")):
        assert process.poll() is None, (folder / "run.log").read_text()
        time.sleep(0.02)
    (folder / "hold").touch()
    while "1 of 3 steps" not in (folder / "run.log").read_text():
        time.sleep(0.02)
    while not (started := list((folder / "results" / "logs" / "validate_dataset").iterdir())) or len(started) < 2:
        time.sleep(0.02)
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_killed_and_started_again(folder: Path, run: subprocess.Popen[bytes]) -> None:
    refused = snakemake(*ARGUMENTS, folder=folder, check=False)
    assert f"results: another run writes here: process {run.pid} of" in refused
    assert "Traceback" not in refused
    printed = snakemake("disk", "results", "--cores", "1", "--configfile", "power.yaml", folder=folder)
    assert "are free" in printed and "experiments are finished" in printed
    first = next((folder / "results" / "data").glob("*/manifest.json"))
    before = first.read_bytes(), first.stat().st_mtime_ns

    run.kill()  # as the kernel does when memory is short: the job goes on
    run.wait()
    refused = snakemake(*ARGUMENTS, folder=folder, check=False)
    jobs = re.search(r"jobs of a run that was killed still work: process ([\d ]+)\n", refused)
    assert jobs is not None, refused
    for pid in jobs[1].split():
        os.kill(int(pid), signal.SIGKILL)
    (folder / "hold").unlink()

    second = next(folder / name for name in MANIFESTS if not (folder / name).exists())
    job = ("--mode", "remote", "--allowed-rules", "validate_dataset", "--configfile", "power.yaml", "--cores", "1")
    snakemake(*job, "--", str(second.relative_to(folder)), folder=folder)  # a cluster job that outlived its snakemake
    assert second.exists()
    assert "1 of 2 steps" in snakemake(*ARGUMENTS, folder=folder)
    assert (first.read_bytes(), first.stat().st_mtime_ns) == before
    for name in MANIFESTS:
        read_manifest(folder / name, verify=True)


def test_what_another_working_directory_made_is_left_alone(folder: Path) -> None:
    owner = folder / "results" / ".workflow" / "owner.json"
    owner.parent.mkdir(parents=True)
    there = {"directory": str(folder.parent), "inode": 1, "inode_of_results": owner.parents[1].stat().st_ino}
    more = {"name": "results", "mark": "0", "host": socket.gethostname(), "user": "ada", "since": 0}
    write_json(owner, {**there, **more})
    refused = snakemake(*ARGUMENTS, "--dry-run", folder=folder, check=False)
    assert f"results: these results belong to the working directory {folder.parent} on " in refused
    assert "Traceback" not in refused
    arguments = (*ARGUMENTS, "--dry-run", "--snakefile", str(folder / "Snakefile"))
    (folder / "elsewhere").mkdir()
    shutil.copy(folder / "power.yaml", folder / "elsewhere")
    assert "run snakemake in the repository: cd" in snakemake(*arguments, folder=folder / "elsewhere", check=False)
    assert "name a folder as `store`" in snakemake(*ARGUMENTS, "--dry-run", "--cache", folder=folder, check=False)
