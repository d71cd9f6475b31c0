"""A results folder belongs to one working directory, and one run at a time writes to it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vlmflow.errors import UserError
from vlmflow.files import write_json
from vlmflow.housekeeping.owner import ResultsRoot
from vlmflow.housekeeping.process import Process
from vlmflow.housekeeping.runlock import locked

_HOLD = """
import subprocess, sys
from pathlib import Path
from vlmflow.housekeeping.runlock import locked
with locked(Path(sys.argv[1])):
    job = subprocess.Popen(["sleep", "60"])
    print(job.pid, flush=True)
    sys.stdin.read()
    job.kill()
"""


@pytest.fixture
def first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory; a results folder beside it is its own."""
    folder = tmp_path / "first"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with ResultsRoot(tmp_path / "results").taken():
        pass
    return folder


@pytest.fixture
def second(first: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another directory, the current one now."""
    folder = first.with_name("second")
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def record(results: Path, **changes: Any) -> dict[str, Any]:
    path = results / ".workflow" / "owner.json"
    content: dict[str, Any] = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps(content))
    return content


def test_another_working_directory_is_refused(first: Path, second: Path) -> None:
    results = first.with_name("results")
    with pytest.raises(UserError, match=f"(?s)belong to the working directory {first} on .* since 20.*owner.json"):
        ResultsRoot(results).check()
    with pytest.raises(UserError, match="belong to"), ResultsRoot(results).taken():
        pytest.fail("went on")
    ResultsRoot(second / "results").check()


def test_a_check_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ResultsRoot("results").check()
    assert not list(tmp_path.iterdir())


def test_a_renamed_owner_keeps_its_results(
    first: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    results = first.with_name("results")
    first.rename(first.with_name("renamed"))
    monkeypatch.chdir(first.with_name("renamed"))
    since = record(results, host="login2")["since"]  # seen from any machine
    with ResultsRoot(results).taken():
        assert record(results)["directory"].endswith("renamed")
    assert record(results)["since"] == since
    assert not caplog.records


def test_an_owner_that_is_gone_is_followed_where_nothing_is_finished(first: Path, second: Path) -> None:
    results = first.with_name("results")
    shutil.rmtree(first)
    with ResultsRoot(results).taken():
        pass
    assert record(results)["directory"] == str(second)
    record(results, host="elsewhere", directory="/not/mounted/here", inode=1)
    with pytest.raises(UserError, match="on elsewhere"):
        ResultsRoot(results).check()


@pytest.mark.usefixtures("second")
def test_finished_results_without_what_they_were_made_with(first: Path, caplog: pytest.LogCaptureFixture) -> None:
    results = first.with_name("results")
    finish(results)
    shutil.rmtree(first)
    root = ResultsRoot(results)
    for call in (root.check, root.taken().__enter__):
        with pytest.raises(UserError, match=f"(?s)not known here; snakemake kept it in {first}/.*bring that folder"):
            call()
    (results / ".workflow" / "owner.json").unlink()
    root.check()
    assert "--touch --forceall" in caplog.text
    accept(results, caplog)


def test_results_of_a_colleague_over_own_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folders = [tmp_path / "mine", tmp_path / "theirs"]
    for folder in folders:
        folder.mkdir()
        monkeypatch.chdir(folder)
        with ResultsRoot("results").taken():
            finish(Path("results"))
    shutil.rmtree(folders[0] / "results")
    shutil.copytree("results", folders[0] / "results")
    monkeypatch.chdir(folders[0])
    with pytest.raises(UserError, match="not known here"):
        ResultsRoot("results").check()
    (folders[0] / "results" / ".workflow" / "owner.json").unlink()
    accept(Path("results"), caplog)


def test_results_under_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    with ResultsRoot("old").taken():
        finish(Path("old"))
    Path("old").rename("new")
    with pytest.raises(UserError, match=r"new: these results were called old.*\n.*give them their name back"):
        ResultsRoot("new").check()
    Path("new/.workflow/owner.json").unlink()
    accept(Path("new"), caplog)


def finish(results: Path) -> None:
    write_json(results / "data" / "pets" / "manifest.json", {})


def accept(results: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A run, after which nothing is said any more."""
    with ResultsRoot(results).taken():
        pass
    caplog.clear()
    ResultsRoot(results).check()
    assert not caplog.records


@pytest.mark.parametrize("content", ["", "{", "[]", '{"directory": "/"}'])
def test_a_record_that_a_power_cut_left_says_nothing(first: Path, second: Path, content: str) -> None:
    results = first.with_name("results")
    (results / ".workflow" / "owner.json").write_text(content)
    with ResultsRoot(results).taken():
        assert record(results)["directory"] == str(second)


def test_a_copy_of_everything_is_a_workflow_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "first").mkdir()
    monkeypatch.chdir(tmp_path / "first")
    with ResultsRoot("results").taken():
        pass
    shutil.copytree(tmp_path / "first", tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    with ResultsRoot("results").taken():
        pass
    with pytest.raises(UserError, match="belong to"):
        ResultsRoot(tmp_path / "first" / "results").check()


def test_the_deleted_record_is_written_anew(first: Path, second: Path) -> None:
    results = first.with_name("results")
    (results / ".workflow" / "owner.json").unlink()
    with ResultsRoot(results).taken():
        assert record(results)["directory"] == str(second)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock and has started a job."""
    command = [sys.executable, "-c", _HOLD, str(tmp_path / "results" / ".workflow" / "lock")]
    environment = {**os.environ, "PYTHONPATH": "workflow"}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, env=environment, start_new_session=True, **pipes)
    yield process
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_second_run_is_told_who_runs(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    lock = tmp_path / "results" / ".workflow" / "lock"
    assert holder.stdout is not None
    job = int(holder.stdout.readline())
    with (
        pytest.raises(UserError, match=f"another run writes here: process {holder.pid} of .* started 20"),
        locked(lock),
    ):
        pytest.fail("went on")
    holder.kill()
    holder.wait()
    with pytest.raises(UserError, match=f"still work: process {job}\n.*kill {job}$"), locked(lock):
        pytest.fail("went on")
    os.kill(job, signal.SIGKILL)
    for _ in range(2):
        with locked(lock):
            assert Process.of(json.loads(lock.read_text())) == Process.this()


def test_a_run_that_ended_leaves_nothing(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    assert holder.stdout is not None
    holder.stdout.readline()
    holder.communicate()
    lock = tmp_path / "results" / ".workflow" / "lock"
    assert lock.read_text() == ""
    with locked(lock):
        pass


def test_without_locks_of_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    lock = tmp_path / "lock"
    with locked(lock):
        held = json.loads(lock.read_text())
        with pytest.raises(UserError, match=f"process {os.getpid()}"), locked(lock):
            pytest.fail("went on")
    lock.write_text(json.dumps({**held, "started": held["started"] - 60}))  # the number came round again
    with locked(lock):
        pass
    lock.write_text(json.dumps({**held, "host": "elsewhere"}))
    with pytest.raises(UserError, match=r"(?s)on elsewhere.*if it is gone for good, delete"), locked(lock):
        pytest.fail("went on")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"(?s)cannot be written: .*name a folder"), locked(tmp_path / "file" / "lock"):
        pytest.fail("went on")


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What squeue prints."""
    answer, program = tmp_path / "queue", tmp_path / "bin" / "squeue"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\n[ "$1" = --me ] && cat {answer}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return answer


def test_cluster_jobs_of_a_run_that_is_gone(squeue: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = ResultsRoot("results")
    squeue.write_text("7|vlmflow-00000000_ab|rule_train_adapter_wildcards_other\n8|mine|(null)\n")
    with root.taken(slurm=True):
        pass
    with squeue.open("a") as stream:
        stream.write(f"9|{root.tag}_1b2c|rule_train_adapter_wildcards_qlora\n10_[3]|{root.tag}_1b2c|rule_x\n")
    message = r"9 \(train_adapter_wildcards_qlora\), 10_\[3\] \(x\)\n.*scancel 9 10_\[3\]$"
    with pytest.raises(UserError, match=message), root.taken(slurm=True):
        pytest.fail("went on")
    with root.taken():
        pass
    squeue.unlink()
    with root.taken(slurm=True):
        assert "squeue does not say" in caplog.text
