"""Two processes end where one does: DDP and DeepSpeed's ZeRO with the real scripts, on the CPU (gloo)."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from PIL import Image as Pictures
from safetensors.torch import load_file

from conftest import make_tiny_model, make_tokens, read_lines
from repository import ENVIRONMENT, ROOT
from vlmflow.data.records import Image, Record, Turn, write_records
from vlmflow.files import sha256_file, write_manifest
from vlmflow.models.directory import load_processor
from vlmflow.training.batches import Room, Share, micro_batches
from vlmflow.training.engine import load_samples
from vlmflow.training.options import FinetuneOptions, PretrainOptions

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="DeepSpeed compiles its gloo helper at first use")
STEPS, BATCH = 8, 4
LORA = {"rank": 4, "alpha": 8, "dropout": 0.0, "variant": "lora", "vision_rank": 0, "vision_alpha": 16}
HOW: dict[str, Any] = {"micro_batch_size": 1, "gradient_checkpointing": False, "workers": 0, "checkpoint_steps": 2}
SPREAD = {"stage3_param_persistence_threshold": 0}  # else ZeRO-3 leaves parameters as small as these on all processes
_BUILD = "from deepspeed.comm.torch import build_shm_op; build_shm_op()"


@dataclass(frozen=True)
class Job:
    """A training stage, its inputs (manifests), and what it is told."""

    script: str
    model: Path
    data: Path
    options: PretrainOptions | FinetuneOptions
    how: dict[str, Any] = field(default_factory=lambda: HOW)

    def command(self, folder: Path, processes: int) -> list[str]:
        launcher = ["python", str(ROOT / "workflow" / "scripts" / "launch.py"), "--processes", str(processes), "--"]
        projector = ["--projector"] if isinstance(self.options, FinetuneOptions) else []
        return [
            *launcher, str(ROOT / "workflow" / "scripts" / f"{self.script}.py"),
            "--config", json.dumps(asdict(self.options)), "--model", str(self.model), *projector,
            "--data", str(self.data), "--execution", json.dumps(self.how),
            "--checkpoints", str(folder / "state"), "--output", str(folder / "out" / "manifest.json"),
        ]  # fmt: skip


@functools.cache
def compile_helper() -> None:
    """DeepSpeed's helper for gloo is compiled once (40 s), not by two processes at a time."""
    environment = {**ENVIRONMENT, "DS_ACCELERATOR": "cpu"}
    subprocess.run([sys.executable, "-c", _BUILD], env=environment, check=True, capture_output=True, timeout=300)


def start(job: Job, folder: Path, processes: int = 2) -> subprocess.Popen[str]:
    if job.how.get("deepspeed"):
        compile_helper()
    folder.mkdir(exist_ok=True)
    environment = {**ENVIRONMENT, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with (folder / "log").open("w") as log:
        return subprocess.Popen(job.command(folder, processes), env=environment, stdout=log, stderr=log, text=True)


def trained(job: Job, folder: Path, processes: int = 2) -> dict[str, torch.Tensor]:
    """The weights that a job ends with."""
    process = start(job, folder, processes)
    assert process.wait(timeout=300) == 0, (folder / "log").read_text()
    return weights(folder)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted((folder / "out").glob("*.safetensors"))
    return {f"{path.stem}.{name}": value for path in files for name, value in load_file(path).items()}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys() and found
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Manifests of a model and of the tokens of a data set, half of which is text without pictures."""
    folder = tmp_path_factory.mktemp("distributed")
    data = folder / "data"
    data.mkdir()
    made = []
    for index in range(STEPS * BATCH // 2):
        colour = ("red", "green", "blue", "white")[index % 4]
        if index % 2:
            turns = (Turn("user", "Say it " + "again and " * (index % 5)), Turn("assistant", f"{colour}, {index}"))
            made.append(Record(f"r{index}", (), turns, category="text"))
            continue
        path = data / f"{index}.png"
        Pictures.new("RGB", (10 + index, 12), colour).save(path)
        image = Image(str(path), 10 + index, 12, sha256_file(path))
        turns = (Turn("user", "<image>\nWhat colour is this?"), Turn("assistant", colour))
        made.append(Record(f"r{index}", (image,), turns, category="colour"))
    for split, part in (("train", made), ("validation", made[:1]), ("test", made[:1])):
        write_records(data / f"{split}.jsonl", part)
    write_manifest(data)
    model = make_tiny_model(folder)
    return model, make_tokens(model, [data / "manifest.json"], folder / "tokens")


@pytest.fixture(scope="module")
def common() -> dict[str, Any]:
    return {"epochs": 2, "batch_size": BATCH, "learning_rate": 5e-4, "weight_decay": 0.01, "betas": [0.9, 0.999],
            "warmup_ratio": 0.0, "schedule": "cosine", "max_grad_norm": 1.0, "precision": "fp32", "seed": 0,
            "repeat": [1]}  # fmt: skip


@pytest.fixture(scope="module")
def lora(inputs: tuple[Path, Path], common: dict[str, Any]) -> Job:
    options = FinetuneOptions(**common, method="lora", projector_learning_rate=2e-3, train_projector=True, lora=LORA)
    return Job("train_adapter", *inputs, options)


@pytest.fixture(scope="module")
def pretrain(inputs: tuple[Path, Path], common: dict[str, Any]) -> Job:
    return Job("train_projector", *inputs, PretrainOptions(**common, train=["projector"], calibrate=8))


@pytest.fixture(scope="module")
def alone(lora: Job, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """What one process ends with, four samples at a time."""
    how = {**HOW, "micro_batch_size": 4}
    return trained(replace(lora, how=how), tmp_path_factory.mktemp("alone"), processes=1)


def zero(name: str, folder: Path, **changed: Any) -> dict[str, Any]:
    """Execution with one of our DeepSpeed files, changed here and there."""
    content = json.loads((ROOT / "config" / "deepspeed" / f"{name}.json").read_text())
    content["zero_optimization"] |= changed
    (folder / "zero.json").write_text(json.dumps(content))
    return {**HOW, "deepspeed": str(folder / "zero")}


def test_the_processes_share_every_batch_and_some_get_text_only(lora: Job) -> None:
    """What the other tests rest on: in some round one process has pictures and the other has none."""
    samples = load_samples(lora.data, load_processor(lora.model), lora.options)
    assert samples.schedule.steps == STEPS
    mixed = 0
    for step in range(STEPS):
        room = Room.of(samples, 1, few_tiles=False)
        shares = [micro_batches(samples, step, room, Share(rank, 2)) for rank in range(2)]
        taken = [position for share in shares for batch in share for position in batch]
        assert sorted(taken) == list(samples.positions(step))
        for batches in zip(*shares, strict=True):
            mixed += len({any(samples.row(position)["tiles"] for position in batch) for batch in batches}) == 2
    assert mixed


@pytest.mark.parametrize("deepspeed", [None, pytest.param("zero2", marks=pytest.mark.slow)])
def test_two_processes_end_in_the_weights_of_one(
    lora: Job, alone: dict[str, torch.Tensor], tmp_path: Path, deepspeed: str | None
) -> None:
    job = replace(lora, how={**HOW, "deepspeed": deepspeed})
    assert_same(trained(job, tmp_path), alone)
    assert [line["step"] for line in read_lines(tmp_path / "out" / "metrics.jsonl")] == list(range(1, STEPS + 1))
    assert not (tmp_path / "state").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero1", "zero3", "zero2_offload", "zero3_offload"])
def test_every_deepspeed_file_ends_in_the_same_weights(
    lora: Job, alone: dict[str, torch.Tensor], tmp_path: Path, name: str
) -> None:
    spread = SPREAD if name.startswith("zero3") else {}
    assert_same(trained(replace(lora, how=zero(name, tmp_path, **spread)), tmp_path), alone)


@pytest.mark.slow
def test_the_projector_is_pretrained_alike(pretrain: Job, tmp_path: Path) -> None:
    expected = trained(pretrain, tmp_path / "alone", processes=1)
    for name, how in (("ddp", HOW), ("zero3", zero("zero3", tmp_path, **SPREAD))):
        assert_same(trained(replace(pretrain, how=how), tmp_path / name), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_a_killed_group_ends_where_it_would_have(
    lora: Job, alone: dict[str, torch.Tensor], tmp_path: Path, name: str
) -> None:
    job = replace(lora, how=zero(name, tmp_path, **(SPREAD if name == "zero3" else {})))
    process = start(job, tmp_path)
    checkpoint = saved(tmp_path, process, step=4)
    kill(process, [*workers(process).values(), psutil.Process(process.pid)])
    assert whole(checkpoint)
    assert_same(trained(job, tmp_path), alone)
    assert resumed_at(tmp_path) >= 4
    assert [line["step"] for line in read_lines(tmp_path / "out" / "metrics.jsonl")] == list(range(1, STEPS + 1))


@pytest.mark.slow
@pytest.mark.parametrize("deepspeed", [None, "zero2"])
def test_the_death_of_one_process_ends_all(
    lora: Job, alone: dict[str, torch.Tensor], tmp_path: Path, deepspeed: str | None
) -> None:
    job = replace(lora, how={**HOW, "deepspeed": deepspeed})
    process = start(job, tmp_path)
    checkpoint = saved(tmp_path, process, step=2)
    kill(process, [workers(process)[1]])
    assert process.wait(timeout=60) != 0
    assert "another process of this run has ended" in (tmp_path / "log").read_text()
    assert whole(checkpoint)
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert_same(trained(job, tmp_path), alone)
    assert resumed_at(tmp_path) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("deepspeed", [None, "zero2"])
def test_a_request_to_stop_saves_what_all_have(
    lora: Job, alone: dict[str, torch.Tensor], tmp_path: Path, deepspeed: str | None
) -> None:
    """The launcher passes the SIGTERM on, waits for the save, and ends with the status of the stage."""
    job = replace(lora, how={**HOW, "deepspeed": deepspeed, "checkpoint_steps": 5})
    process = start(job, tmp_path)
    begun(tmp_path, process)
    process.terminate()
    assert process.wait(timeout=60) == 75
    found = [path for path in tmp_path.glob("state/*/checkpoint-*") if whole(path)]
    step = max(int(path.name.rsplit("-", 1)[1]) for path in found)
    assert f"stopped at step {step} on request" in (tmp_path / "log").read_text()
    assert_same(trained(job, tmp_path), alone)
    assert resumed_at(tmp_path) == step


def begun(folder: Path, process: subprocess.Popen[str]) -> None:
    """Wait until the first step is done."""
    end = time.monotonic() + 300
    while "step 1/" not in (folder / "log").read_text():
        assert process.poll() is None and time.monotonic() < end, (folder / "log").read_text()
        time.sleep(0.005)


def workers(process: subprocess.Popen[str]) -> dict[int, psutil.Process]:
    """Rank -> process of a job that the launcher has started."""
    children = psutil.Process(process.pid).children(recursive=True)
    return {int(child.environ()["RANK"]): child for child in children if "RANK" in child.environ()}


def kill(process: subprocess.Popen[str], victims: list[psutil.Process]) -> None:
    for victim in victims:
        os.kill(victim.pid, signal.SIGKILL)
    if process.pid in [victim.pid for victim in victims]:
        process.wait(timeout=60)


def saved(folder: Path, process: subprocess.Popen[str], step: int) -> Path:
    """Wait until the checkpoint of ``step`` is there."""
    end = time.monotonic() + 300
    while time.monotonic() < end and process.poll() is None:
        found = list(folder.glob(f"state/*/checkpoint-{step}"))
        if found:
            return found[0]
        time.sleep(0.005)
    raise AssertionError((folder / "log").read_text())


def whole(checkpoint: Path) -> bool:
    """The Trainer writes its own state last."""
    return (checkpoint / "trainer_state.json").is_file()


def resumed_at(folder: Path) -> int:
    provenance = json.loads((folder / "out" / "provenance.json").read_text())
    return int(provenance["training"]["resumed_at_step"])
