"""Who judges, as the configuration says it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from test_config import DEMO, edited

from vlmflow.config import resolve
from vlmflow.errors import UserError
from vlmflow.evaluation.judge import judge_contradictions
from vlmflow.plan.judge import JudgePlan


def configured(**node: Any) -> dict[str, Any]:
    """The demo with one more evaluation."""
    return edited("evaluations.e", {"dataset": next(iter(DEMO["datasets"])), **node})


def test_metric_and_judge_belong_together() -> None:
    nodes = {
        "both": {"metrics": ["contains", "judge"], "judge": {}}, "none": {"metrics": ["contains"]},
        "alone": {"metrics": ["judge"]}, "idle": {"metrics": ["contains"], "judge": {}},
    }  # fmt: skip
    problems = list(judge_contradictions({"evaluations": nodes}))
    assert [problem.split(":")[0] for problem in problems] == ["evaluations.alone.metrics", "evaluations.idle.judge"]


def test_limits_and_requests_are_parameters_of_their_own() -> None:
    judge_node = {"endpoint": "http://127.0.0.1:1/v1", "model": "m", "key_variable": "MY_KEY"}
    plan = JudgePlan(configured(metrics=["contains", "judge"], judge=judge_node))
    assert plan.judged_inputs("e", "model-m") == ["results/evaluate/e/model-m/judged.json"]
    assert "parallel" in plan.judge_limits("e") and "parallel" not in plan.judge_params("e")
    assert json.loads(plan.judge_params("e"))["judge"]["temperature"] == 0
    assert plan.judge_keys() == ["MY_KEY"]
    assert JudgePlan(configured(metrics=["contains"])).judged_inputs("e", "model-m") == []


@pytest.mark.parametrize("node", [{"model": "m"}, {"endpoint": "ftp://a", "model": "m"}, {"prompts": "a"}])
def test_a_wrong_judge_is_refused(node: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="judge"):
        resolve(configured(metrics=["judge"], judge=node))
