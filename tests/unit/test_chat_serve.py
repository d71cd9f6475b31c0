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
    assert plan.served_split() == "test" and "digits" in plan.served_title()


def test_one_experiment_is_to_be_chosen() -> None:
    config = demo()
    config["experiments"] = {**config["experiments"], "other": {"finetune": "qlora", "evaluations": ["held-out"]}}
    with pytest.raises(UserError, match=r"2 experiments[\s\S]*snakemake serve --config experiment=digits"):
        ServePlan(config).served()
    assert ServePlan({**config, "experiment": "other"}).served_title() == "other"
