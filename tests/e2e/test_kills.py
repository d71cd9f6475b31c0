"""Training that is killed or stopped at any moment and started again ends in the bytes of undisturbed training."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from repository import ENVIRONMENT, copy_repository

KILLS = 10
"""SIGKILLs per stage; there are two stages."""
TRAINING = {"epochs": 20, "batch_size": 4, "learning_rate": 1e-3, "weight_decay": 0.0, "betas": [0.9, 0.999],
            "warmup_ratio": 0.1, "schedule": "cosine", "max_grad_norm": 1.0, "precision": "fp32", "seed": 0,
            "repeat": [1]}  # fmt: skip
PRETRAIN = {**TRAINING, "train": ["projector"], "calibrate": 0}
FINETUNE = {**TRAINING, "method": "qlora", "projector_learning_rate": None, "train_projector": True,
            "lora": {"rank": 4, "alpha": 8, "dropout": 0.1, "variant": "lora", "vision_rank": 0, "vision_alpha": 16},
            "quantization": {"type": "nf4", "double": True}}  # fmt: skip
EXECUTION = {"workers": 1, "checkpoint_steps": 2, "micro_batch_size": 2}


@dataclass
class Stage:
    """A training stage that can be run under several names, each with an output and state of its own."""

    workflow: Path
    folder: Path
    script: str
    arguments: dict[str, str | list[str]]
    seconds: float = 0
    """How long an undisturbed run takes, from the start of the process to its end."""

    def start(self, name: str) -> subprocess.Popen[str]:
        """Start a run or go on with it, in a process group of its own."""
        places = {"checkpoints": str(self.state(name)), "output": str(self.output(name) / "manifest.json"),
                  "features": str(self.folder / name / "features")}  # fmt: skip
        command = [sys.executable, str(self.workflow / "scripts" / self.script)]
        for option, value in {**self.arguments, "execution": json.dumps(EXECUTION), **places}.items():
            command += [f"--{option}", *([value] if isinstance(value, str) else value)]
        environment = {**ENVIRONMENT, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True)

    def state(self, name: str) -> Path:
        return self.folder / name / "state"

    def output(self, name: str) -> Path:
        return self.folder / name / "out"

    def saved(self, name: str) -> int:
        """The step of the latest checkpoint; 0 if there is none."""
        return max((int(path.name.split("-")[1]) for path in self.state(name).glob("*/checkpoint-*")), default=0)

    def finish(self, name: str) -> None:
        process = self.start(name)
        error = process.communicate()[1]
        assert process.returncode == 0, error

    def facts(self, name: str) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads((self.output(name) / "provenance.json").read_text())["training"]
        return facts

    def result(self, name: str) -> tuple[dict[str, bytes], list[tuple[int, float]]]:
        """Name -> content of the weights, and (step, loss) of every line of the metrics."""
        weights = {path.name: path.read_bytes() for path in self.output(name).glob("*.safetensors")}
        lines = map(json.loads, (self.output(name) / "metrics.jsonl").read_text().splitlines())
        return weights, [(line["step"], line["loss"]) for line in lines]


@pytest.fixture(scope="module")
def stages(tiny_model: Path, tiny_tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Stage]:
    """A pretrain and a fine-tune, each of which has run undisturbed; on code that stays as it is meanwhile."""
    folder = tmp_path_factory.mktemp("kills")
    workflow = copy_repository(folder) / "workflow"
    inputs: dict[str, str | list[str]] = {"model": str(tiny_model), "data": str(tiny_tokens)}
    pretrain = {**inputs, "config": json.dumps(PRETRAIN)}
    finetune = {**inputs, "config": json.dumps(FINETUNE), "projector": []}
    both = [
        Stage(workflow, folder / "pretrain", "train_projector.py", pretrain),
        Stage(workflow, folder / "finetune", "train_adapter.py", finetune),
    ]

    def undisturbed(stage: Stage) -> None:
        started = time.monotonic()
        stage.finish("undisturbed")
        stage.seconds = time.monotonic() - started

    side_by_side(undisturbed, both)
    return both


def side_by_side(function: Callable[..., Any], *arguments: list[Any]) -> list[Any]:
    """``map`` with a thread for each: the work is done by the processes that they start."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(function, *arguments))


def killed_again_and_again(stage: Stage, seed: int, kills: int) -> tuple[list[str], int]:
    """Kill runs at random moments, imports included, and go on, until it has happened ``kills`` times.

    Returns the runs, all complete, and how many processes were killed after they had saved.
    """
    moments = random.Random(seed)
    runs: list[str] = []
    after_saving = 0
    while kills:
        name = f"killed-{seed}-{len(runs)}"
        runs.append(name)
        while kills and not (stage.output(name) / "manifest.json").exists():
            saved, process = stage.saved(name), stage.start(name)
            try:
                error = process.communicate(timeout=moments.uniform(0, stage.seconds))[1]
                assert process.returncode == 0, error
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                kills -= 1
                after_saving += stage.saved(name) > saved
        if not (stage.output(name) / "manifest.json").exists():
            stage.finish(name)
    return runs, after_saving


@pytest.mark.slow
def test_killed_at_random_moments(stages: list[Stage]) -> None:
    resumed: list[int] = []
    killed_after_saving = 0
    found = side_by_side(killed_again_and_again, stages, [1, 2], [KILLS, KILLS])
    for stage, (runs, after_saving) in zip(stages, found, strict=True):
        weights, losses = stage.result("undisturbed")
        assert [step for step, _ in losses] == list(range(1, len(losses) + 1))
        for name in runs:
            assert stage.result(name) == (weights, losses)
            resumed.append(stage.facts(name)["resumed_at_step"])
        killed_after_saving += after_saving
    assert max(resumed) > 0
    assert killed_after_saving >= 3, "nearly all were killed before they did anything"


def killed_after_saving(stage: Stage, times: int) -> int:
    """Kill a run ``times`` times once it has saved anew, then let it finish; the step of the last state."""
    for _ in range(times):
        saved, process = stage.saved("killed"), stage.start("killed")
        while stage.saved("killed") == saved and process.poll() is None:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    last = stage.saved("killed")
    stage.finish("killed")
    return last


def test_killed_while_it_trains(stages: list[Stage]) -> None:
    for stage, last in zip(stages, side_by_side(killed_after_saving, stages, [1, 1]), strict=True):
        assert stage.result("killed") == stage.result("undisturbed")
        assert stage.facts("killed")["resumed_at_step"] == last > 0
        assert not stage.state("killed").exists()


def stopped_by(stage: Stage, number: signal.Signals) -> tuple[int, str, int]:
    """Signal every process of a run, as Slurm does, once something is saved; status, message, step of the state."""
    process = stage.start(number.name)
    while not stage.saved(number.name) and process.poll() is None:
        time.sleep(0.05)
    if process.poll() is None:
        os.killpg(process.pid, number)
    error = process.communicate()[1]
    return process.returncode, error, stage.saved(number.name)


def test_stopped_on_request(stages: list[Stage]) -> None:
    signals = [signal.SIGTERM, signal.SIGUSR1]
    for stage, number, (status, error, saved) in zip(
        stages, signals, side_by_side(stopped_by, stages, signals), strict=True
    ):
        assert status == 75, error
        stopped = re.search(r"^stopped at step (\d+) on request; the state is saved, run the same", error, re.MULTILINE)
        assert stopped is not None
        assert int(stopped[1]) == saved
        stage.finish(number.name)
        assert stage.facts(number.name)["resumed_at_step"] == saved > 0
        assert stage.result(number.name) == stage.result("undisturbed")
