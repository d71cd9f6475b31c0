"""Through Slurm, undisturbed or not: what the user sees, what was granted, what is left over, and the result."""

from __future__ import annotations

import json
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from slurm import scenarios
from slurm.scenarios import NewRun, Outcome

pytestmark = pytest.mark.slurm
WEIGHTS = ("adapter_model.safetensors", "projector.safetensors")


def test_whole_recipe_on_two_gpus(outcome: Outcome, undisturbed: Path) -> None:
    assert outcome.status == 0, outcome.seen
    assert set(outcome.states) == {"COMPLETED"}
    gpus = {allocation.rule: allocation.granted.get("gres/gpu") for allocation in outcome.allocations}
    assert {"build_model", "validate_dataset", "count_tokens", "merge_adapter", "ask_transformers"} <= set(gpus)
    assert {rule: count for rule, count in gpus.items() if count} == {"train_projector": "2", "train_adapter": "2"}
    assert outcome.training_facts["processes"] == 2
    assert_trained_alike(outcome.results / "pretrain" / "projector", undisturbed / "pretrain" / "projector")
    assert_trained_alike(outcome.trained, undisturbed / "finetune" / "qlora")
    for predictions in undisturbed.glob("evaluate/held-out/*/predictions.jsonl"):
        assert answers(outcome.results / predictions.relative_to(undisturbed)) == answers(predictions)
    assert (outcome.results / "report" / "tiny" / "index.html").exists()


def test_two_nodes_of_two_processes(outcome: Outcome, undisturbed: Path) -> None:
    assert outcome.status == 0, outcome.seen
    [allocation] = outcome.allocations
    assert allocation.nodes == "gpu[1-2]"
    assert (allocation.granted["node"], allocation.granted["gres/gpu"]) == ("2", "4")
    assert outcome.training_facts["processes"] == 4
    assert_trained_alike(outcome.trained, undisturbed / "finetune" / "qlora")


def test_failing(outcome: Outcome) -> None:
    assert outcome.status == 1
    assert "RuntimeError: broken on purpose" in outcome.seen
    assert outcome.states == ["FAILED"] * 3


def test_out_of_memory(outcome: Outcome, undisturbed: Path) -> None:
    assert outcome.status == 0, outcome.seen
    asked = [allocation.memory for allocation in outcome.allocations]
    assert asked == [500, 750, 1000][: len(asked)]
    assert outcome.states == ["FAILED"] * (len(asked) - 1) + ["COMPLETED"]
    assert "exceeded memory limit" in outcome.seen
    assert_same_weights(outcome, undisturbed)


def test_near_the_time_limit(outcome: Outcome, undisturbed: Path) -> None:
    assert outcome.states == ["REQUEUED", "COMPLETED"], outcome.seen
    assert_went_on(outcome, undisturbed)


def test_cancelled_by_somebody(outcome: Outcome, undisturbed: Path) -> None:
    assert outcome.states == ["CANCELLED", "COMPLETED"], outcome.seen
    assert "SLURM status is: 'CANCELLED'" in outcome.seen
    assert_went_on(outcome, undisturbed)


def test_preempted(outcome: Outcome, undisturbed: Path) -> None:
    assert outcome.states == ["PREEMPTED", "COMPLETED"], outcome.seen
    assert_went_on(outcome, undisturbed)


def test_interrupted(outcome: Outcome, undisturbed: Path) -> None:
    assert outcome.states == ["CANCELLED", "COMPLETED"], outcome.seen
    assert_went_on(outcome, undisturbed)


def test_node_goes_down(outcomes: dict[str, Future[Outcome]], submitted: NewRun, undisturbed: Path) -> None:
    wait(outcomes.values())  # whose jobs may be on that node
    outcome = scenarios.node_goes_down(submitted)
    assert outcome.states == ["NODE_FAIL", "COMPLETED"], outcome.seen
    first, last = outcome.allocations
    assert first.nodes != last.nodes
    assert_went_on(outcome, undisturbed)


def assert_went_on(outcome: Outcome, undisturbed: Path) -> None:
    """The training did not start anew, and ended as if nothing had happened."""
    assert outcome.status == 0, outcome.seen
    assert outcome.training_facts["resumed_at_step"] >= outcome.saved_steps > 0
    assert_same_weights(outcome, undisturbed)


def assert_same_weights(outcome: Outcome, undisturbed: Path) -> None:
    for name in WEIGHTS:
        assert (outcome.trained / name).read_bytes() == (undisturbed / "finetune" / "qlora" / name).read_bytes(), name


def assert_trained_alike(folder: Path, expected: Path) -> None:
    """Several processes do not take sums in the order of one."""
    files = list(expected.glob("*.safetensors"))
    assert files
    for file in files:
        torch.testing.assert_close(load_file(folder / file.name), load_file(file), rtol=0, atol=1e-5)


def answers(predictions: Path) -> list[Any]:
    return [json.loads(line)["prediction"] for line in predictions.read_text(encoding="utf-8").splitlines()]
