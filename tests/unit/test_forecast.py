"""The rows of `snakemake plan`, of tiny and of published models, and the table that is made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_published import native

from vlmflow.config import schema
from vlmflow.cost.forecast import Stage, plan_training
from vlmflow.cost.forecast_table import _duration, print_plan, render
from vlmflow.cost.speed import CARDS
from vlmflow.errors import UserError
from vlmflow.files import write_json, write_manifest
from vlmflow.plan import Plan
from vlmflow.tokens.columns import ROW

CONFIG: dict[str, Any] = {
    "models": {"base": {"family": "internvl", "checkpoint": {"path": "x"}}},
    "datasets": {"data": {"path": "x", "annotations": "x"}},
    "pretrains": {"projector": {"model": "base", "dataset": "data", "batch_size": 64}},
    "evaluations": {"asked": {"dataset": "data"}},
    "experiments": {"it": {"finetune": "tuned", "evaluations": ["asked"]}},
}


def planned(**finetune: Any) -> Plan:
    node = {"init": "projector", "datasets": ["data"], "batch_size": 64, "lora": {"rank": 128}, **finetune}
    return Plan({**CONFIG, "finetunes": {"tuned": node}})


@pytest.fixture(scope="module")
def two_billion(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Manifests of a model of InternVL2-2B's shape, without weights, and of the tokens of 1,000 records."""
    folder = tmp_path_factory.mktemp("two-billion")
    native("internvl2-2b").save_pretrained(folder / "model")
    random = np.random.default_rng(0)
    tiles = random.integers(1, 8, 1000)
    rows = np.zeros(1000, ROW)
    rows["tiles"], rows["tokens"], rows["supervised"], rows["repeat"] = tiles, tiles * 256 + 256, 128, 1
    (folder / "tokens").mkdir()
    np.save(folder / "tokens" / "0.npy", rows)
    (folder / "tokens" / "0.jsonl").write_text("")
    write_manifest(folder / "tokens", model="", datasets=[{"name": "data", "hash": "", "records": 1000}])
    return folder / "model" / "manifest.json", folder / "tokens" / "manifest.json"


def forecast(work: tuple[Path, Path], tmp_path: Path, stage: str = "finetune", **finetune: Any) -> dict[str, Any]:
    name = {"finetune": "tuned", "pretrain": "projector"}[stage]
    parameters = json.loads(planned(**finetune).forecast_params(stage, name))
    plan_training(Stage(**parameters), *work, tmp_path / "row.json")
    row: dict[str, Any] = json.loads((tmp_path / "row.json").read_text())
    return row


def on_gpus(gpus: int = 1, **resources: Any) -> dict[str, Any]:
    return {"resources": {"gpu": gpus, "gpu_model": "H200", **resources}}


def test_a_stage_in_a_row(two_billion: tuple[Path, Path], tmp_path: Path) -> None:
    row = forecast(two_billion, tmp_path, epochs=2, **on_gpus())
    assert row["steps"] == 32  # 2,000 samples in batches of 64
    assert row["samples"] == 32 * 64
    assert row["tokens"] == pytest.approx(32 * 64 * 1280, rel=0.05)
    assert (row["longest_tokens"], row["most_tiles"]) == (7 * 256 + 256, 7)
    assert row["fits"]
    assert row["memory_gib"]["total"] <= row["memory_limit_gib"] == pytest.approx(0.9 * 139.8)
    parts = {name: value for name, value in row["memory_gib"].items() if name != "total"}
    assert sum(parts.values()) == pytest.approx(row["memory_gib"]["total"], abs=0.05)
    assert 15 < row["samples"] / row["seconds"] < 60  # 23 to 25 samples of 2,048 tokens a second are measured
    assert row["gpu_hours"] == pytest.approx(row["seconds"] / 3600, abs=0.001)
    assert row["notes"] == []


def test_more_gpus_take_less_time_and_as_many_hours(two_billion: tuple[Path, Path], tmp_path: Path) -> None:
    one, four = (forecast(two_billion, tmp_path, **on_gpus(gpus, micro_batch_size=4)) for gpus in (1, 4))
    assert four["seconds"] == pytest.approx(one["seconds"] / 4, rel=0.2)
    assert four["gpu_hours"] == pytest.approx(one["gpu_hours"], rel=0.2)


def test_a_small_card_takes_smaller_micro_batches(two_billion: tuple[Path, Path], tmp_path: Path) -> None:
    large, small = (forecast(two_billion, tmp_path, **on_gpus(gpu_model=card)) for card in ("H200", "RTX4090"))
    assert small["fits"]
    assert small["memory_gib"]["total"] <= 0.9 * 23.6
    assert small["micro_batch_size"] < large["micro_batch_size"]
    assert small["seconds"] > 3 * large["seconds"]


def test_what_does_not_fit_says_what_would(two_billion: tuple[Path, Path], tmp_path: Path) -> None:
    row = forecast(two_billion, tmp_path, method="full", **on_gpus(gpu_model="RTX3090"))
    assert not row["fits"]
    assert row["seconds"] is row["gpu_hours"] is None
    assert row["memory_gib"]["total"] > row["memory_limit_gib"]
    assert "what would fit: `method: lora`" in row["notes"][0]


def test_too_few_samples_for_the_gpus_are_seen_before_the_job() -> None:
    with pytest.raises(UserError, match="2 cannot be shared by 4 GPUs"):
        planned(batch_size=2, **on_gpus(4))


def test_notes_tell_what_was_assumed(two_billion: tuple[Path, Path], tmp_path: Path) -> None:
    resources = {"gpu": 1, "micro_batch_size": 999, "runtime": 1}
    row = forecast(two_billion, tmp_path, epochs=100, resources=resources)
    assert row["gpu"] == "A100-80"
    assert row["gpu_assumed"]
    assumed, reduced, late = row["notes"]
    assert assumed.startswith("A100-80 is assumed")
    assert reduced.startswith("micro_batch_size 999 is more than fits")
    assert late.startswith("longer than its time limit of 1 min")


def test_a_memory_cap_and_zero_are_taken_from_the_resources(two_billion: tuple[Path, Path], tmp_path: Path) -> None:
    capped = forecast(two_billion, tmp_path, **on_gpus(gpu_memory_gb=10))
    assert capped["memory_limit_gib"] == pytest.approx(9e9 / 2**30, abs=0.01)
    assert capped["fits"]
    plain, zero = (
        forecast(two_billion, tmp_path, **on_gpus(4, deepspeed=name, micro_batch_size=1)) for name in (None, "zero2")
    )
    assert zero["memory_gib"]["optimizer"] == pytest.approx(plain["memory_gib"]["optimizer"] / 4, abs=0.01)


def test_a_stage_without_a_gpu_runs_on_the_cpu(tiny_model: Path, tiny_tokens: Path, tmp_path: Path) -> None:
    row = forecast((tiny_model, tiny_tokens), tmp_path, "pretrain")
    assert (row["gpu"], row["gpus"], row["gpu_hours"], row["fits"]) == ("CPU", 0, 0, True)
    assert row["memory_limit_gib"] == pytest.approx(0.9 * 8e9 / 2**30 - 1, abs=0.01)


def test_every_trained_stage_is_planned() -> None:
    assert planned().forecasts() == ["results/plan/pretrain-projector.json", "results/plan/finetune-tuned.json"]
    imported = planned(init="base", xtuner={"path": "x"}, lora={"rank": 128, "alpha": 256})
    assert imported.forecasts() == []


def test_resources_are_part_of_the_plan() -> None:
    some, more = (planned(**on_gpus(gpus)).forecast_params("finetune", "tuned") for gpus in (1, 2))
    assert some != more


def test_the_schema_names_the_cards() -> None:
    description = schema()["$defs"]["resources"]["properties"]["gpu_model"]["description"]
    assert set(description.split("(")[1].split(")")[0].split(", ")) == set(CARDS)


ROW_SHOWN: dict[str, Any] = {
    "stage": "finetune", "name": "tuned", "gpu": "H200", "gpu_assumed": False, "gpus": 2, "samples": 128000,
    "tokens": 2_000_000, "steps": 1000, "micro_batch_size": 8, "checkpointed_layers": 3, "layers": 24,
    "memory_gib": {"weights": 4.1, "adapters": 0.6, "gradients": 0.6, "optimizer": 1.1, "activations": 30, "logits": 1,
                   "vision": 0.2, "reserve": 0.2, "total": 37.8},
    "memory_limit_gib": 125.8, "seconds": 5400, "gpu_hours": 3.0, "fits": True, "notes": [],
}  # fmt: skip


def test_the_table() -> None:
    lines = render([ROW_SHOWN]).splitlines()
    assert lines[1].split() == ["finetune", "tuned", "H200", "2", "128,000", "2,000,000", "1,000", "8", "3/24",
                                "37.8/125.8", "1", "h", "30", "min", "3.0", "yes"]  # fmt: skip
    assert lines[3] == "3.0 GPU-hours"
    assert lines[6].split() == ["finetune", "tuned", "4.1", "0.6", "0.6", "1.1", "30.0", "1.0", "0.2", "0.2", "37.8"]


def test_what_does_not_fit_is_loud_and_explained() -> None:
    text = render([ROW_SHOWN, {**ROW_SHOWN, "fits": False, "seconds": None, "gpu_hours": None, "notes": ["why"]}])
    assert "-          -    NO" in text
    assert "3.0 GPU-hours, of what fits" in text
    assert text.endswith("finetune tuned: why\n")


def test_the_plan_is_written_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(tmp_path / "row.json", ROW_SHOWN)
    print_plan([tmp_path / "row.json"] * 2, tmp_path / "plan.json")
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan == {"stages": [ROW_SHOWN] * 2, "gpu_hours": 6.0}
    assert "6.0 GPU-hours" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (8.4, "8 s"), (420, "7 min"), (18360, "5 h 06 min"), (7180, "2 h 00 min"), (273600, "3 d 04 h")],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert _duration(seconds) == text
