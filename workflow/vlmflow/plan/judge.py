"""What the judge of answers depends on."""

from __future__ import annotations

from vlmflow.evaluation.judge.check import METRIC
from vlmflow.plan.nodes import Nodes
from vlmflow.plan.values import as_json, without


class JudgePlan(Nodes):
    """Questions of the rule judge."""

    def judged_inputs(self, name: str, checkpoint: str) -> list[str]:
        """Verdicts on a checkpoint's answers, if the evaluation asks for any."""
        judged = METRIC in self.evaluation(name)["metrics"]
        return [f"{self.results}/evaluate/{name}/{checkpoint}/judged.json"] if judged else []

    def judge_params(self, name: str) -> str:
        node = self.evaluation(name)
        return as_json({"judge": without(node["judge"], "limits"), "split": node["split"], "limit": node["limit"]})

    def judge_limits(self, name: str) -> str:
        return as_json(self.evaluation(name)["judge"]["limits"])

    def judge_keys(self) -> list[str]:
        """Environment variables that hold judges' keys."""
        nodes = self.config["evaluations"].values()
        return [node["judge"]["key_variable"] for node in nodes if "judge" in node]
