"""The runs that the training benchmarks compare: each is a process of its own, over models and data made once."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import train_data
import train_model

HERE = Path(__file__).resolve().parent
_PATIENCE = 540  # seconds for one run
_RAISED = re.compile(r"(\[rank\d+\]: )?[\w.]*(Error|Exception)\b")
"""Last line of a traceback, torchrun's mark before it."""
_RECORDS = {"tiles7": ("internvl2-2b", 200), "llava": ("llava", 256), "mix": ("llava", 200)}
"""Data set -> model it is for, and number of different pictures."""


class Run(NamedTuple):
    """One training run; ``baseline`` names the run that its rate is compared with."""

    name: str
    data: str
    arguments: list[str]
    """Of its script, besides model, data and output."""
    script: str = "train_ours.py"
    baseline: str | None = None
    processes: int = 1
    records: int | None = None
    """Training records; None: as many as the steps take."""


class Bench(NamedTuple):
    """Where the runs live and how large they are."""

    work: Path
    tiny: bool
    steps: int
    batch_size: int
    """Samples of an optimizer step."""
    execution: str = "{}"
    """JSON: keys of Execution for every run of the project's."""

    def model(self, data: str) -> Path:
        """Manifest of the model that a data set is for."""
        name = _RECORDS[data][0]
        return train_model.make_model(name, self.work / name, self.tiny)

    def tokens(self, data: str, records: int | None = None) -> Path:
        """Manifest of the counted records."""
        records = records or self.steps * self.batch_size
        pictures = min(records, 4 if self.tiny else _RECORDS[data][1])
        folder = self.work / f"{data}-{records}"
        return train_data.make_data(data, self.model(data), folder, records, pictures, self.tiny)


def ours(name: str, data: str, stage: str = "finetune", **given: Any) -> Run:
    """A run of the project's stage; ``options`` and ``execution`` as train_ours.py takes them."""
    execution = {"feature_cache_gb": 0, **given.pop("execution", {})}
    arguments = ["--stage", stage, "--options", json.dumps(given.pop("options", {})),
                 "--execution", json.dumps(execution)]  # fmt: skip
    if cap := given.pop("memory_gib", None):
        arguments += ["--memory-gib", str(cap)]
    return Run(name, data, arguments, **given)


def baseline(bench: Bench, name: str, data: str, variant: str, batch: int, *flags: str) -> Run:
    """A run of the plain Trainer with ``batch`` samples in a forward pass, 32 or more in an optimizer step."""
    batch = min(batch, 2) if bench.tiny else batch
    accumulation = max(1, (4 if bench.tiny else min(bench.batch_size, 32)) // batch)
    sizes = ["--batch", str(batch), "--accumulation", str(accumulation), "--workers", "1" if bench.tiny else "4"]
    return Run(name, data, ["--variant", variant, *sizes, *flags], script="train_baseline.py")


def profiled_runs(bench: Bench) -> list[Run]:
    """Before and after, in 4 bits and not."""
    return [
        baseline(bench, "baseline-nf4", "tiles7", "nf4", 4),
        baseline(bench, "baseline-bf16", "tiles7", "lora", 4, "--no-checkpointing"),
        ours("ours-qlora", "tiles7", options={"method": "qlora"}),
        ours("ours-lora", "tiles7"),
    ]


def run(bench: Bench, each: Run, *more: str) -> dict[str, Any]:
    """What a run wrote, or ``error``: the last line of its log that tells, and where the log is."""
    model, tokens = bench.model(each.data), bench.tokens(each.data, each.records)
    output, log = bench.work / f"{each.name}.json", bench.work / f"{each.name}.log"
    output.unlink(missing_ok=True)
    launcher = [sys.executable]
    if each.processes > 1:
        launcher += [str(HERE.parent / "workflow" / "scripts" / "launch.py"), "--gpus", str(each.processes),
                     "--processes", str(each.processes), "--"]  # fmt: skip
    command = [*launcher, str(HERE / each.script), "--model", str(model), "--tokens", str(tokens),
               "--steps", str(bench.steps), "--output", str(output), *each.arguments, *more]  # fmt: skip
    if each.script == "train_ours.py":
        command += ["--work", str(bench.work / "run"), "--batch-size", str(bench.batch_size)]
        command += ["--execution", bench.execution]
    start = time.perf_counter()
    with log.open("w") as stream:
        try:
            subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, timeout=_PATIENCE, check=False,
                           env=_environment(each))  # fmt: skip
        except subprocess.TimeoutExpired:
            stream.write(f"\nError: not done after {_PATIENCE} s\n")
    print(f"{each.name}: {time.perf_counter() - start:.0f} s", flush=True)
    if output.is_file():
        result: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
        return result
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    telling = [line for line in lines if _RAISED.match(line) and "ChildFailedError" not in line]
    return {"error": (telling or lines or ["no output"])[-1][:300], "log": str(log)}


def _environment(each: Run) -> dict[str, str]:
    """That of this process; one GPU for one process, which the plain Trainer would otherwise share out by threads."""
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}  # as vlmflow.cli sets it for every script
    if each.processes == 1:
        environment["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return environment
