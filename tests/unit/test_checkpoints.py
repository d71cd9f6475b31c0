"""Training state on disk: killed, out of space or asked to stop at any moment, the last good checkpoint is there."""

from __future__ import annotations

import errno
import functools
import gc
import json
import logging
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import TrainingArguments

from vlmflow.errors import Interrupted, UserError
from vlmflow.training import state
from vlmflow.training.checkpoints import AtomicSaves, Checkpoints, SaveSchedule

IDENTITY = {"options": {"seed": 0}, "inputs": {"model": "a"}}


class Regression(torch.nn.Module):
    """A model that the Trainer takes, that draws random numbers, and of which the larger part is frozen."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(width, 1)
        self.frozen = torch.nn.Linear(100, 100).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": torch.nn.functional.dropout(self.layer(x), 0.5).square().mean()}


def make_trainer(
    checkpoints: Checkpoints,
    steps: int = 6,
    every: int | None = 2,
    asked: Callable[[], bool] = lambda: False,
    minutes: float = 10,
    width: int = 4,
    deepspeed: dict[str, Any] | None = None,
    **schedule: Any,
) -> AtomicSaves:
    arguments = TrainingArguments(
        output_dir=str(checkpoints.folder), max_steps=steps, use_cpu=True, report_to=[], disable_tqdm=True,
        save_strategy="no", logging_strategy="no", per_device_train_batch_size=4, learning_rate=0.1,
        lr_scheduler_type="constant", deepspeed=deepspeed,
    )  # fmt: skip
    data = [{"x": torch.full((width,), float(index))} for index in range(48)]
    return AtomicSaves(model=Regression(width), args=arguments, train_dataset=data, checkpoints=checkpoints,
                       callbacks=[SaveSchedule(asked, minutes, every, **schedule)])  # fmt: skip


def train(checkpoints: Checkpoints, **how: Any) -> torch.Tensor:
    """The weights after training from the last checkpoint to the end."""
    trainer = make_trainer(checkpoints, **how)
    last = checkpoints.last()
    trainer.train(str(last) if last else None)
    weights: torch.Tensor = trainer.model.layer.weight.detach().clone()
    return weights


def names(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.folder.iterdir() if path.is_dir())


@pytest.fixture(scope="module", autouse=True)
def nothing_to_collect() -> Iterator[None]:
    """The Trainer collects garbage at every start, which takes longer than all else here."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoints, torch.Tensor]:
    """All checkpoints and the final weights of a run that nobody disturbed."""
    checkpoints = Checkpoints(tmp_path_factory.mktemp("reference"), IDENTITY, keep=9)
    return checkpoints, train(checkpoints)


def after_two_steps(folder: Path, reference: Checkpoints, keep: int = 1) -> Checkpoints:
    """The state of a run that was killed after its first checkpoint."""
    checkpoints = Checkpoints(folder, IDENTITY, keep)
    shutil.copytree(reference.folder / "checkpoint-2", checkpoints.folder / "checkpoint-2")
    return checkpoints


def test_the_newest_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, IDENTITY, keep=2)
    assert checkpoints.last() is None
    train(checkpoints, steps=12)
    assert names(checkpoints) == ["checkpoint-10", "checkpoint-12"], "by number, not by name"
    assert checkpoints.last() == checkpoints.folder / "checkpoint-12"


def test_a_checkpoint_gets_its_name_when_it_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: set[int] = set()
    sync, replace = os.fsync, Path.replace

    def recorded(descriptor: int) -> None:
        flushed.add(os.fstat(descriptor).st_ino)
        sync(descriptor)

    def checked(self: Path, target: Path) -> Path:
        if target.name.startswith("checkpoint-"):
            assert {path.stat().st_ino for path in (self, *self.rglob("*"))} <= flushed
            flushed.clear()
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", recorded)
    monkeypatch.setattr(Path, "replace", checked)
    checkpoints = Checkpoints(tmp_path, IDENTITY, keep=1)
    train(checkpoints, steps=2)
    assert checkpoints.folder.stat().st_ino in flushed, "the new name is on the disk as well"


def _exit_at(event: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process die without a word before the given file operation."""
    seen = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*arguments: Any, **named: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen == event:
                os._exit(9)
            return function(*arguments, **named)

        return operation

    for owner, name in ((torch, "save"), (os, "fsync"), (Path, "replace"), (os, "unlink"), (os, "rmdir")):
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))


def test_killed_at_any_point_of_a_save(
    tmp_path: Path, reference: tuple[Checkpoints, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed, weights = reference
    lasts = []
    for event in range(1, 100):
        checkpoints = after_two_steps(tmp_path / str(event), undisturbed)
        child = os.fork()
        if child == 0:
            _exit_at(event, monkeypatch)
            train(checkpoints, steps=4)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        last = Checkpoints(tmp_path / str(event), IDENTITY, keep=1).last()
        assert last is not None
        assert not list(last.parent.glob(".*"))
        for path in (undisturbed.folder / last.name).iterdir():
            assert (last / path.name).stat().st_size > 0
        lasts.append(last.name)
        if status == 0:
            break
        assert status == 9
    assert len(lasts) > 20, "not a save of several files"
    assert lasts == sorted(lasts)
    assert set(lasts) == {"checkpoint-2", "checkpoint-4"}
    for event in (1, lasts.index("checkpoint-4") + 1):
        assert torch.equal(train(Checkpoints(tmp_path / str(event), IDENTITY, keep=1)), weights)


@pytest.mark.parametrize("file", range(1, 5))
def test_a_full_disk_ends_training_with_the_last_checkpoint_intact(
    tmp_path: Path, reference: tuple[Checkpoints, torch.Tensor], monkeypatch: pytest.MonkeyPatch, file: int
) -> None:
    checkpoints = after_two_steps(tmp_path, reference[0])
    save, calls = torch.save, 0

    def full(*arguments: Any, **named: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == file:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(*arguments, **named)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"step 4 could not be saved .*No space left(.|\n)*goes on from .*checkpoint-2"):
        train(checkpoints)
    assert names(checkpoints) == ["checkpoint-2"]
    monkeypatch.undo()
    assert torch.equal(train(checkpoints), reference[1])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 400 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "none", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk takes root's privileges")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("width", [10_000, 15_000, 20_000])
def test_a_disk_that_really_is_full(small_disk: Path, width: int) -> None:
    """By the width, another file is the one that does not fit."""
    checkpoints = Checkpoints(small_disk, IDENTITY, keep=2)
    with pytest.raises(
        UserError, match=r"could not be saved \(0 MB free\): (writing failed|No space left)(.|\n)*goes on from"
    ):
        train(checkpoints, width=width, every=1)
    whole = checkpoints.last()
    assert whole is not None
    assert names(checkpoints)[-1] == whole.name
    with pytest.raises(UserError, match=f"step {int(whole.name[-1]) + 1} "):
        train(checkpoints, width=width, every=1)
    assert not list(checkpoints.folder.glob(".*"))


def test_other_errors_are_not_called_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(RuntimeError, match="CUDA error"):
        train(Checkpoints(tmp_path, IDENTITY, keep=1))


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/state: training state cannot be kept here: Not a directory"):
        Checkpoints(tmp_path / "file" / "state", IDENTITY, keep=1)


def test_a_read_only_disk_is_refused_at_once(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UserError, match="cannot be kept here: Read-only file system"):
        Checkpoints(small_disk, IDENTITY, keep=1)


def test_saved_by_minutes(tmp_path: Path) -> None:
    now = 0.0

    def step_of_35_seconds() -> bool:
        nonlocal now
        now += 35
        return False

    checkpoints = Checkpoints(tmp_path, IDENTITY, keep=9)
    train(checkpoints, steps=7, every=None, minutes=1, asked=step_of_35_seconds, clock=lambda: now)
    assert names(checkpoints) == ["checkpoint-2", "checkpoint-4", "checkpoint-6", "checkpoint-7"]


def test_asked_to_stop_it_saves_and_goes_on_later(tmp_path: Path, reference: tuple[Checkpoints, torch.Tensor]) -> None:
    checkpoints = Checkpoints(tmp_path, IDENTITY, keep=1)
    answers = iter([False, False, True])
    with pytest.raises(Interrupted) as stop:
        train(checkpoints, every=None, asked=lambda: next(answers))
    assert stop.value.step == 3
    assert names(checkpoints) == ["checkpoint-3"]
    assert torch.equal(train(checkpoints), reference[1])


def test_asked_to_stop_in_the_last_step_it_completes(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, IDENTITY, keep=1)
    answers = iter([False, True])
    train(checkpoints, steps=2, asked=lambda: next(answers))
    assert names(checkpoints) == ["checkpoint-2"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"options": {"seed": 1}}, "options.seed was 0, is 1"),
        ({"inputs": {"model": "b"}}, "inputs.model was a, is b"),
        ("_code", "code was "),
        ("_versions", "versions was "),
    ],
)
def test_state_of_another_run_is_not_continued(
    tmp_path: Path,
    reference: tuple[Checkpoints, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    change: str | dict[str, Any],
    why: str,
) -> None:
    caplog.set_level(logging.INFO, logger=state.__name__)
    before = after_two_steps(tmp_path, reference[0])
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "tensorboard").mkdir()
    if isinstance(change, str):
        monkeypatch.setattr(state, change, lambda: "other")
    after = Checkpoints(tmp_path, {**IDENTITY, **change} if isinstance(change, dict) else IDENTITY, keep=1)
    assert after.last() is None
    assert len(caplog.messages) == 1
    assert why in caplog.messages[0]
    assert before.last() is not None, "whoever changes it back goes on"
    train(after, steps=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [".lock", after.folder.name, "metrics.jsonl", "tensorboard"]
    )


def test_the_same_run_is_continued_without_a_word(
    tmp_path: Path, reference: tuple[Checkpoints, torch.Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger=state.__name__)
    before = after_two_steps(tmp_path, reference[0])
    reordered = dict(reversed(IDENTITY.items()))
    assert Checkpoints(tmp_path, reordered, keep=1).last() == before.folder / "checkpoint-2"
    assert caplog.messages == []


def test_facts_are_remembered_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path, IDENTITY, keep=1)
    assert checkpoints.recall() == {}
    checkpoints.remember(micro_batch_size=8, layers=2)
    checkpoints.remember(micro_batch_size=4)
    monkeypatch.setattr(Path, "replace", lambda *_: os._exit(9))
    child = os.fork()
    if child == 0:
        checkpoints.remember(micro_batch_size=1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    monkeypatch.undo()
    assert Checkpoints(tmp_path, IDENTITY, keep=1).recall() == {"micro_batch_size": 4, "layers": 2}
    assert not list(checkpoints.folder.glob(".*"))


def test_state_of_deepspeed_is_not_read_half(tmp_path: Path, reference: tuple[Checkpoints, torch.Tensor]) -> None:
    """The Trainer takes a missing ``optimizer.pt`` for a new optimizer, without a word."""
    checkpoints = after_two_steps(tmp_path, reference[0])
    (checkpoints.folder / "checkpoint-2" / "layout.json").write_text(json.dumps({"stage": 2, "processes": 4}))
    with pytest.raises(UserError, match="saved with ZeRO-2 on 4 processes and cannot be continued without DeepSpeed"):
        train(checkpoints)


def _with_deepspeed(rank: int, folder: Path) -> str:
    """Stop after three steps, go on; the weights, and the sizes of the last checkpoint's files in bytes."""
    _join(rank, 1, folder)
    zero = {"zero_optimization": {"stage": 2}, "train_micro_batch_size_per_gpu": "auto"}
    undisturbed = train(Checkpoints(folder / "undisturbed", IDENTITY, keep=1), deepspeed=zero)
    checkpoints = Checkpoints(folder / "stopped", IDENTITY, keep=1)
    answers = iter([False, False, True])
    with pytest.raises(Interrupted):
        train(checkpoints, deepspeed=zero, asked=lambda: next(answers))
    assert names(checkpoints) == ["checkpoint-3"]
    assert torch.equal(train(checkpoints, deepspeed=zero), undisturbed)
    assert max(path.stat().st_size for path in checkpoints.folder.rglob("*.pt")) < 40_000, "frozen weights are saved"
    return "equal"


def _join(rank: int, processes: int, folder: Path) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes), LOCAL_WORLD_SIZE=str(processes))
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    store = f"file://{folder / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=processes)


def _one_of_two(rank: int, folder: Path, what: str) -> str:
    """Train as one of two processes; what happened."""
    _join(rank, 2, folder)
    checkpoints = Checkpoints(folder, IDENTITY, keep=1)
    answers = iter([False, rank == 1 and what == "asked", False, False, False, False])
    if rank == 1 and what == "full":
        saves = iter(range(9))
        save = torch.save

        def full(*arguments: Any, **named: Any) -> None:
            if next(saves) == 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            save(*arguments, **named)

        torch.save = full
    try:
        train(checkpoints, asked=lambda: next(answers), every=2 if what == "full" else None)
    except Interrupted as stop:
        return f"stopped at {stop.step}"
    except UserError as error:
        return error.problem.reason
    return "complete"


def in_processes(count: int, folder: Path, run: Callable[[int, Path], str]) -> list[str]:
    """What ``run(rank, folder)`` returns in each of several processes."""
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            try:
                (folder / f"{rank}.txt").write_text(run(rank, folder))
            finally:
                traceback.print_exc()
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    return [(folder / f"{rank}.txt").read_text() for rank in range(count)]


def test_deepspeeds_state_is_continued_and_has_no_frozen_weights(tmp_path: Path) -> None:
    assert in_processes(1, tmp_path, _with_deepspeed) == ["equal"]


@pytest.mark.parametrize("what", ["asked", "full"])
def test_two_processes_agree(tmp_path: Path, what: str) -> None:
    told = in_processes(2, tmp_path, functools.partial(_one_of_two, what=what))
    state_folder = next(path for path in tmp_path.iterdir() if path.is_dir())
    kept = sorted(path.name for path in state_folder.glob("*-*")) + sorted(map(str, state_folder.glob(".*")))
    if what == "asked":
        assert told == ["stopped at 2", "stopped at 2"]
        assert {path.name for path in (state_folder / "checkpoint-2").glob("rng*")} == {
            "rng_state_0.pth", "rng_state_1.pth"}  # fmt: skip
    else:
        assert "step 4 could not be saved" in told[0] and "another process" in told[0]
        assert "No space left" in told[1]
    assert kept == ["checkpoint-2"]


def test_two_processes_do_not_train_one_stage(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from vlmflow.training.state import Checkpoints;"
        "kept = Checkpoints(Path(sys.argv[1]), {}, 2); print('locked', flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "workflow")}
    command = [sys.executable, "-c", code, str(tmp_path / "state")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match="another process trains this stage"):
            Checkpoints(tmp_path / "state", {}, 2)
        other.kill()
        other.wait()
    Checkpoints(tmp_path / "state", {}, 2)
