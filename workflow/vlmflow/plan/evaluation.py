"""What evaluation, comparison and report depend on."""

from __future__ import annotations

from vlmflow.plan.nodes import LAUNCH, Nodes
from vlmflow.plan.values import as_json, without

_AT_ONCE = 8


class EvaluationPlan(Nodes):
    """Questions of the rules evaluate and report."""

    def checkpoint_inputs(self, checkpoint: str) -> dict[str, str]:
        """Manifests that a checkpoint of an evaluation is loaded from: ``model`` and perhaps ``projector``."""
        kind, name = checkpoint.removesuffix("+blind").split("-", 1)
        if kind == "pretrain":
            return {
                "model": self.manifest("models", self.model_of(name)),
                "projector": self.manifest("pretrain", name),
            }
        return {"model": self.manifest({"model": "models", "converted": "converted"}[kind], name)}

    def evaluation_params(self, name: str) -> str:
        return as_json(without(self.evaluation(name), "dataset", "blind", "leakage", "resources"))

    def evaluation_batch(self, name: str) -> int:
        """Questions that are answered at once."""
        return self.resource("evaluations", name, "micro_batch_size") or _AT_ONCE

    def evaluation_launcher(self, name: str) -> str:
        """The command that starts an evaluation: one process, on GPUs that no other job has."""
        gpus = self.resource("evaluations", name, "gpu")
        return f"python {LAUNCH} --gpus {gpus} --" if gpus else "python"

    def scores(self, experiment: str) -> list[str]:
        return [f"{self._run_folder(*run)}/scores.json" for run in self.runs(experiment)]

    def _run_folder(self, evaluation: str, checkpoint: str) -> str:
        return f"{self.results}/evaluate/{evaluation}/{checkpoint}"

    def _baselines(self, experiment: str, evaluation: str) -> str:
        finetune = self.data_node("finetune", self.config["experiments"][experiment]["finetune"])
        return f"{self.results}/evaluate/{evaluation}/baselines-{finetune}.json"

    def comparison_inputs(self, experiment: str) -> list[str]:
        evaluations = self.config["experiments"][experiment]["evaluations"]
        return [*self.scores(experiment), *(self._baselines(experiment, name) for name in evaluations)]

    def comparison_params(self, experiment: str) -> str:
        """Evaluation -> folders of its runs, as ``compare_checkpoints`` takes them."""
        labels = self.checkpoints(experiment)
        described = {}
        for name in self.config["experiments"][experiment]["evaluations"]:
            folders = {label: self._run_folder(name, checkpoint) for label, checkpoint in labels.items()}
            ends = {label: folders.pop(label) for label in ("before", "after")}
            if self.evaluation(name)["blind"]:
                folders["blind"] = self._run_folder(name, labels["after"] + "+blind")
            described[name] = {**ends, "others": folders, "baselines": self._baselines(experiment, name)}
        return as_json(described)

    def experiment_params(self, name: str) -> str:
        return as_json({"name": name, "title": self.config["experiments"][name]["title"]})

    def report_inputs(self, experiment: str) -> list[str]:
        """Small files that the report reads besides the comparison."""
        reports = [f"{self.results}/data/{name}/manifest.json" for name in self.datasets_of([experiment])]
        return [f"{folder}/manifest.json" for folder in self._trained(experiment).values()] + reports

    def report_params(self, experiment: str, config_files: list[str]) -> str:
        """Where the report finds curves, provenance and data reports, and how the experiment is made again."""
        folders = self._trained(experiment)
        imported = "xtuner" in self.config["finetunes"][self.config["experiments"][experiment]["finetune"]]
        stages = [
            stage for stage in ("pretrain", "finetune") if stage in folders and not (imported and stage == "finetune")
        ]
        files = " ".join(config_files)
        return as_json(
            {
                "metrics": {stage: f"{folders[stage]}/metrics.jsonl" for stage in stages},
                "provenance": [f"{folder}/provenance.json" for folder in folders.values()],
                "data_reports": [f"{self.results}/data/{name}/report.json" for name in self.datasets_of([experiment])],
                "example": None if imported else f"{folders['finetune']}/example.json",
                "commands": [f"snakemake {experiment}" + (f" --configfile {files}" if files else "")],
            }
        )

    def _trained(self, experiment: str) -> dict[str, str]:
        """Stage -> artefact folder of everything an experiment trains or converts, in order."""
        finetune = self.config["experiments"][experiment]["finetune"]
        init = self.config["finetunes"][finetune]["init"]
        pretrain = {"pretrain": init} if init in self.config["pretrains"] else {}
        stages = {"models": self.model_of(finetune), **pretrain, "finetune": finetune, "merged": finetune,
                  "converted": finetune}  # fmt: skip
        return {stage: f"{self.results}/{stage}/{name}" for stage, name in stages.items()}
