"""Progress for people, TensorBoard and the report: a bar or a line now and then, and metrics.jsonl."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import TrainerCallback
from transformers.integrations import is_tensorboard_available

from vlmflow.files import write_text
from vlmflow.provenance import peak_memory_mb
from vlmflow.training.meter import Meter

logger = logging.getLogger(__name__)
METRICS = "metrics.jsonl"
BOARD = "tensorboard"
"""Folder of the TensorBoard events, beside metrics.jsonl."""
_LINES = 20  # progress lines per run, and
_SILENCE = 300.0  # seconds without a line at most
_RESULTS = ("loss", "lr", "grad_norm")  # the other figures tell of speed

Row = dict[str, Any]


class MetricsLog(TrainerCallback):
    """Writes one JSON object per logged step to ``path``, and the same figures for TensorBoard beside it.

    ``step``, ``loss`` (mean since the last line), ``lr``, ``grad_norm``, the rates of :meth:`Meter.drain`,
    ``memory_gb`` (peak so far: of the GPU, or of the process on a CPU) and ``seconds`` (of training, resumed runs
    included). Process 0 writes.
    """

    def __init__(self, path: Path, steps: int, meter: Meter) -> None:
        self._path, self._meter, self._progress = path, meter, Progress(steps)
        self._board: Board | None = None
        self._before = self._started = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A resumed run keeps the lines up to its checkpoint, so that every step is there once."""
        del args, control
        if not state.is_world_process_zero:
            return
        rows = [row for row in _whole_rows(self._path) if row["step"] <= state.global_step]
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in rows))
        self._board = Board(self._path.with_name(BOARD), rows) if is_tensorboard_available() else None
        self._before, self._started = (rows[-1]["seconds"] if rows else 0.0), time.monotonic()
        self._progress.begin(state.global_step)
        self._meter.restart()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by the Trainer after every optimizer step."""
        del args, control
        if state.is_world_process_zero:
            self._progress.step(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Called by the Trainer every ``logging_steps``, and with other figures at the end."""
        del args, control
        if logs is None or "loss" not in logs or not state.is_world_process_zero:
            return
        gradient = logs.get("grad_norm")
        row = {
            "step": state.global_step,
            "loss": logs["loss"],
            "lr": logs["learning_rate"],
            "grad_norm": None if gradient is None else float(gradient),
            **self._meter.drain(),
            "memory_gb": round(_memory_gb(), 2),
            "seconds": round(self._before + time.monotonic() - self._started, 1),
        }
        with self._path.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        if self._board:
            self._board.add(row)
        self._progress.show(row)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by the Trainer when all steps are done; whoever stops earlier calls :meth:`close`."""
        del args, state, control
        self.close()

    def close(self) -> None:
        """Leave the terminal and the event file as they should be."""
        self._progress.end()
        if self._board:
            self._board.close()


class Progress:
    """A bar on a terminal; a line now and then in a log file."""

    def __init__(self, steps: int) -> None:
        self._steps, self._bar = steps, tqdm(disable=True)

    def begin(self, step: int) -> None:
        """Training starts after ``step`` steps."""
        if step:
            logger.info("going on after step %d of %d, from the saved state", step, self._steps)
        # the rules send stderr through tee into the log, standard output still is the terminal then
        terminal = next((stream for stream in (sys.stderr, sys.stdout) if stream.isatty()), None)
        self._bar = tqdm(
            total=self._steps, initial=step, file=terminal, disable=terminal is None, dynamic_ncols=True,
            bar_format="{percentage:3.0f}% |{bar:12}| {n}/{total} [{elapsed}<{remaining}] {desc}",
        )  # fmt: skip
        self._first = self._said = step
        self._started = self._spoke = time.monotonic()

    def step(self, step: int) -> None:
        """``step`` steps are done."""
        self._bar.update(step - self._bar.n)

    def show(self, row: Row) -> None:
        """The figures of the last logged step."""
        self._bar.set_description_str(figures(row))
        step, now = row["step"], time.monotonic()
        due = step - self._said >= self._steps / _LINES or step == self._steps or now - self._spoke > _SILENCE
        if due and not sys.stderr.isatty():
            seconds = (self._steps - step) * (now - self._started) / max(1, step - self._first)
            self._bar.clear()
            left = timedelta(seconds=round(seconds))
            logger.info("step %d/%d  %s  %s left", step, self._steps, figures(row), left)
            self._said, self._spoke = step, now

    def end(self) -> None:
        """Nothing more comes."""
        self._bar.close()


class Board:
    """TensorBoard scalars, written anew from the kept lines when training resumes, so that every step is there once."""

    def __init__(self, folder: Path, rows: list[Row]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        shutil.rmtree(folder, ignore_errors=True)
        self._writer = SummaryWriter(folder, flush_secs=30)
        self._begin = time.time() - (rows[-1]["seconds"] if rows else 0.0)
        for row in rows:
            self.add(row)

    def add(self, row: Row) -> None:
        """The figures of one line of the log, at the second of training when they were made."""
        for name in row.keys() - {"step", "seconds"}:
            if row[name] is not None:
                group = "training" if name in _RESULTS else "speed"
                self._writer.add_scalar(f"{group}/{name}", row[name], row["step"], self._begin + row["seconds"])

    def close(self) -> None:
        """Write what is still in memory."""
        self._writer.close()


def figures(row: Row) -> str:
    """A line of the log for people."""
    shown = [
        ("loss {:.3f}", row["loss"]),
        ("lr {:.1e}", row["lr"]),
        ("grad {:.2f}", row["grad_norm"]),
        ("{:.1f} samples/s", row["samples_per_s"]),
        ("{:,.0f} tokens/s", row["tokens_per_s"]),
        ("MFU {:.0%}", row["mfu"]),
        ("{:.1f} GB", row["memory_gb"]),
        ("data wait {:.0%}", row["data_wait"]),
    ]
    return "  ".join(text.format(value) for text, value in shown if value is not None)


def _whole_rows(path: Path) -> list[Row]:
    """The lines that a killed run has left; the last may be torn."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def _memory_gb() -> float:
    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else peak_memory_mb() / 1e3
