"""Progress for people and for the report: a line now and then, and metrics.jsonl."""

from __future__ import annotations

import json
import logging
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from vlmflow.provenance import peak_memory_mb

logger = logging.getLogger(__name__)
_LINES = 20  # progress lines per run


class MetricsLog(TrainerCallback):
    """Writes one JSON object per logged step: step, loss, lr, grad_norm, samples_per_s, seconds."""

    def __init__(self, path: Path, steps: int, batch_size: int, first: int) -> None:
        self._path, self._steps, self._batch_size, self._first = path, steps, batch_size, first
        self._started = self._printed = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A resumed run keeps the lines up to its checkpoint, so that every step is there once."""
        del args, control
        kept = self._path.read_text().splitlines() if state.global_step and self._path.is_file() else []
        kept = [line for line in kept if json.loads(line)["step"] <= state.global_step]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text("".join(f"{line}\n" for line in kept))
        self._started = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Called by the Trainer every ``logging_steps``."""
        del args, control
        if logs is None or "loss" not in logs or not state.is_world_process_zero:
            return
        step, seconds = state.global_step, time.monotonic() - self._started
        rate = (step - self._first) * self._batch_size / seconds
        entry = {
            "step": step,
            "loss": logs["loss"],
            "lr": logs["learning_rate"],
            "grad_norm": float(logs["grad_norm"]),
            "samples_per_s": round(rate, 2),
            "seconds": round(seconds, 1),
        }
        with self._path.open("a") as stream:
            stream.write(json.dumps(entry) + "\n")
        if step % max(1, self._steps // _LINES) == 0 or step == self._steps:
            left = timedelta(seconds=round((self._steps - step) * self._batch_size / rate))
            logger.info(
                "step %d/%d  loss %.3f  lr %.1e  grad %.2f  %.1f samples/s  %.1f GB  %s left",
                step, self._steps, entry["loss"], entry["lr"], entry["grad_norm"], rate, _memory_gb(), left,
            )  # fmt: skip


def _memory_gb() -> float:
    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else peak_memory_mb() / 1e3
