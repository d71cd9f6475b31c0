"""What the rule serve shows of an experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from vlmflow.errors import UserError
from vlmflow.plan.serve import ServePlan

CONFIG = Path(__file__).parents[2] / "config" / "config.yaml"


def demo(**changed: Any) -> dict[str, Any]:
    return {**yaml.safe_load(CONFIG.read_text(encoding="utf-8")), **changed}


def test_the_models_before_and_after_and_the_held_out_questions() -> None:
    plan = ServePlan(demo())
    assert plan.served() == {
        "before": "results/models/smollm2-vit/manifest.json",
        "after": "results/converted/qlora/manifest.json",
        "data": "results/data/digit-questions/manifest.json",
    }
    assert plan.served_options() == ["--split", "test", "--max-new-tokens", "8"] and "digits" in plan.served_title()


@pytest.mark.parametrize("family", ["llava", "internvl"])
def test_examples_are_asked_as_the_headlines_evaluation_asks(family: str) -> None:
    config = demo()
    first = config["evaluations"]["held-out"]
    own = {**first, "prompt": "Say: {question}", "max_tiles": 3, "split": "validation"}
    config["evaluations"] = {"held-out": {**first, "general": True}, "own": own}
    config["experiments"]["digits"]["evaluations"] = ["held-out", "own"]
    plan = ServePlan(config)
    plan.config["models"]["smollm2-vit"]["family"] = family
    tiles = ["--max-tiles", "3"] if family == "internvl" else []
    asked = ["--split", "validation", "--max-new-tokens", "8", "--prompt", "Say: {question}", *tiles]
    assert plan.served_options() == asked


def test_one_experiment_is_to_be_chosen() -> None:
    config = demo()
    config["experiments"] = {**config["experiments"], "other": {"finetune": "qlora", "evaluations": ["held-out"]}}
    with pytest.raises(UserError, match=r"2 experiments[\s\S]*snakemake serve --config experiment=digits"):
        ServePlan(config).served()
    assert ServePlan({**config, "experiment": "other"}).served_title() == "other"
