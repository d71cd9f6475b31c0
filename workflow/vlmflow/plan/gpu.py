"""What `snakemake plan` depends on: each training stage as a whole, with the resources that a result never sees."""

from __future__ import annotations

import json

from vlmflow.plan.training import TrainingPlan
from vlmflow.plan.values import as_json

_RESOURCES = ("gpu", "gpu_model", "cpus", "mem_mb", "runtime")


class GpuPlan(TrainingPlan):
    """Questions of the rule plan."""

    def forecasts(self) -> list[str]:
        """The forecast of every stage that the chosen experiments train, in order."""
        names = [("pretrain", name) for name in self.pretrains()]
        names += [("finetune", name) for name in self.finetunes() if name in self.trained()]
        return [f"{self.results}/plan/{stage}-{name}.json" for stage, name in names]

    def forecast_params(self, stage: str, name: str) -> str:
        section = f"{stage}s"
        options = self.pretrain_params(name) if stage == "pretrain" else self.finetune_params(name)
        return as_json(
            {
                "stage": stage,
                "name": name,
                "options": json.loads(options),
                "execution": json.loads(self.execution(section, name)),
                "resources": {key: self.resource(section, name, key) for key in _RESOURCES},
            }
        )
