"""What a finished experiment was made with is compared with what its configuration says now."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_config import DEMO, edited

from vlmflow.files import read_json, write_json
from vlmflow.plan import Plan
from vlmflow.report.made import made_as_told

METRICS = {"exact_match": 0.5}


def made(config: dict[str, Any]) -> dict[str, Any]:
    """How the demo's experiment is made."""
    steps: dict[str, Any] = json.loads(Plan(config).results_params())["made"]["digits"]
    return steps


@pytest.fixture(autouse=True)
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run of the demo leaves in the working directory; the hash of a manifest is its path."""
    monkeypatch.chdir(tmp_path)
    told = made(DEMO)
    for step in told["steps"]:
        for place in step["inputs"].values():
            if place:
                write_json(Path(place), {"hash": place})
        found = {"inputs": {name: place for name, place in step["inputs"].items() if place}}
        scored = step["file"].endswith("scores.json")
        key = {"generation": step["settings"], "metrics": METRICS} if scored else {"config": step["settings"]}
        write_json(Path(step["file"]), {**found, **key})
    paired = [{"metric": name, "before": value, "after": value} for name, value in METRICS.items()]
    evaluations = [{"evaluation": name, "metrics": paired} for name in told["scores"]]
    write_json(Path(told["comparison"]), {"evaluations": evaluations})


@pytest.mark.parametrize(
    ("path", "value"),
    [("finetunes.qlora.resources.micro_batch_size", 2), ("finetunes.qlora.merge.keep", False),
     ("experiments.digits.title", "Another")],
)  # fmt: skip
def test_an_edit_that_changes_no_score(path: str, value: Any) -> None:
    assert made_as_told(made(DEMO), read_json)
    assert made_as_told(made(edited(path, value)), read_json)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("finetunes.qlora.learning_rate", 0.005),
        ("finetunes.qlora.lora.rank", 4),
        ("finetunes.qlora.method", "full"),
        ("finetunes.qlora.datasets", ["name-the-digit"]),
        ("finetunes.qlora.max_length", 99),
        ("finetunes.qlora.init", "smollm2-vit"),
        ("finetunes.qlora.merge", {"base": "original"}),
        ("finetunes.qlora.convert", {"dtype": "float32"}),
        ("pretrains.projector.learning_rate", 0.005),
        ("models.smollm2-vit.image_size", 56),
        ("models.smollm2-vit.language.file", "another.gguf"),
        ("evaluations.held-out.metrics", ["contains"]),
        ("evaluations.held-out.limit", 9),
    ],
)
def test_an_edit_after_which_the_scores_are_those_of_other_settings(path: str, value: Any) -> None:
    assert not made_as_told(made(edited(path, value)), read_json)


@pytest.mark.parametrize("stage", ["models", "pretrain", "tokens", "finetune", "merged", "converted", "data"])
def test_a_stage_that_was_made_anew_and_nothing_after_it(stage: str) -> None:
    for manifest in Path("results", stage).glob("*/manifest.json"):
        write_json(manifest, {"hash": "new"})
    assert not made_as_told(made(DEMO), read_json)


def test_scores_that_were_not_compared_yet() -> None:
    told = made(DEMO)
    [(_, after)] = told["scores"].values()
    write_json(Path(after), {**read_json(Path(after)), "metrics": {"exact_match": 0.75}})
    assert not made_as_told(told, read_json)


def test_a_step_that_is_gone() -> None:
    told = made(DEMO)
    Path(told["steps"][-1]["file"]).unlink()
    assert not made_as_told(told, read_json)
