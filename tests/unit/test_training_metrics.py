"""metrics.jsonl, TensorBoard and the progress of a training run."""

from __future__ import annotations

import io
import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conftest import read_lines
from vlmflow.files import write_manifest
from vlmflow.training.meter import Meter
from vlmflow.training.metrics import BOARD, MetricsLog

LOGS = {"loss": 2.5, "learning_rate": 1e-4, "grad_norm": 0.75}


def train(path: Path, first: int, last: int, steps: int = 8, main: bool = True, **logs: Any) -> MetricsLog:
    """What the Trainer calls from step ``first`` + 1 to ``last``, every step logged."""
    meter = Meter(1, 1e12)
    log = MetricsLog(path, steps, meter)
    state = SimpleNamespace(global_step=first, is_world_process_zero=main)
    log.on_train_begin(None, state, None)
    for state.global_step in range(first + 1, last + 1):
        meter.add(4, 100, 10, 2, 1e9)
        log.on_step_end(None, state, None)
        log.on_log(None, state, None, logs={**LOGS, "loss": 10.0 - state.global_step, **logs})
    log.on_log(None, state, None, logs={"train_runtime": 1.0})
    return log


def scalars(folder: Path, tag: str) -> list[tuple[int, float, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return [(event.step, event.value, event.wall_time) for event in found.Scalars(tag)]


def test_a_line_has_all_figures(tmp_path: Path) -> None:
    train(tmp_path / "metrics.jsonl", 0, 2).close()
    row = read_lines(tmp_path / "metrics.jsonl")[1]
    assert set(row) == {"step", "loss", "lr", "grad_norm", "samples_per_s", "tokens_per_s", "supervised_per_s",
                        "tiles_per_s", "mfu", "data_wait", "memory_gb", "seconds"}  # fmt: skip
    assert (row["step"], row["loss"], row["lr"], row["grad_norm"]) == (2, 8.0, 1e-4, 0.75)
    assert row["tokens_per_s"] == pytest.approx(25 * row["samples_per_s"], rel=0.01)
    assert 0 < row["memory_gb"] < 100


def test_a_resumed_run_has_every_step_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    train(path, 0, 5)  # killed: nobody calls close
    rows = [{**row, "seconds": 10.0 * row["step"]} for row in read_lines(path)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 6, "lo')
    train(path, 3, 8).close()
    rows = read_lines(path)
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert [row["seconds"] for row in rows] == pytest.approx([10, 20, 30, 30, 30, 30, 30, 30], abs=3)
    found = scalars(tmp_path / BOARD, "training/loss")
    assert [(step, value) for step, value, _ in found] == [(step, 10.0 - step) for step in range(1, 9)]
    assert len(list((tmp_path / BOARD).iterdir())) == 1


def test_a_run_that_starts_anew_keeps_nothing(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    train(path, 0, 5).close()
    train(path, 0, 2).close()
    assert [row["step"] for row in read_lines(path)] == [1, 2]
    assert [step for step, _, _ in scalars(tmp_path / BOARD, "speed/tokens_per_s")] == [1, 2]


def test_one_process_writes(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    train(path, 0, 2).close()
    train(path, 0, 8, main=False).close()
    assert [row["step"] for row in read_lines(path)] == [1, 2]
    assert len(list((tmp_path / BOARD).iterdir())) == 1


def test_what_the_engine_does_not_know_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    train(tmp_path / "metrics.jsonl", 0, 1, grad_norm=None).close()
    assert read_lines(tmp_path / "metrics.jsonl")[0]["grad_norm"] is None
    assert "grad" not in caplog.text


def test_a_log_file_gets_few_lines(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    train(tmp_path / "metrics.jsonl", 0, 390, steps=390).close()
    lines = [record.getMessage() for record in caplog.records]
    assert 15 <= len(lines) <= 21
    assert lines[-1].startswith("step 390/390  loss -380.000  lr 1.0e-04  grad 0.75  ")
    assert lines[-1].endswith("0:00:00 left")


class Terminal(io.StringIO):
    """Standard error of somebody who watches."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    train(tmp_path / "metrics.jsonl", 0, 4).close()
    written = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "50% |" in written
    assert "loss 6.000  lr 1.0e-04  grad 0.75" in written
    assert "data wait 0%" in written


def test_a_bar_is_not_drawn_into_a_log_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard error of a rule goes to its log; standard output is what the terminal shows."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(sys, "stdout", Terminal())
    train(tmp_path / "metrics.jsonl", 0, 4).close()
    assert "|" not in sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "50% |" in sys.stdout.getvalue()  # type: ignore[attr-defined]


def test_events_are_no_part_of_what_a_run_has_made(tmp_path: Path) -> None:
    """They hold times: equal runs must have equal hashes."""
    train(tmp_path / "metrics.jsonl", 0, 2).close()
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / BOARD).write_text("a file of that name further down counts")
    assert set(write_manifest(tmp_path)["files"]) == {f"weights/{BOARD}"}
