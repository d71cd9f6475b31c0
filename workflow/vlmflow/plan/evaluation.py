"""What evaluation, comparison and report depend on."""

from __future__ import annotations

from typing import Any

from vlmflow.plan.judge import JudgePlan
from vlmflow.plan.nodes import LAUNCH
from vlmflow.plan.values import as_json, without

_AT_ONCE, _AT_ONCE_ON_A_GPU = 8, 32
_ASKED = ("split", "limit", "prompt", "backend", "max_new_tokens", "max_tiles")
"""Keys of an evaluation that its answers depend on, besides those of LMDeploy."""


class EvaluationPlan(JudgePlan):
    """Questions of the rules evaluate and report."""

    def checkpoint_inputs(self, evaluation: str, checkpoint: str) -> dict[str, str]:
        """Manifests that a checkpoint is loaded from: ``model``, and perhaps ``projector`` or ``adapter``.

        LMDeploy loads whole directories: for it, a base gets its pretrained parts first.
        """
        kind, name = checkpoint.partition("+")[0].split("-", 1)
        if kind == "pretrain" and self.evaluation(evaluation)["backend"] == "lmdeploy":
            return {"model": self.manifest("assembled", name)}
        if kind == "pretrain":
            return {"model": self.manifest("models", self.model_of(name)), "projector": self.manifest("pretrain", name)}
        if kind == "adapter":
            return {"model": self.manifest("models", self.model_of(name)), "adapter": self.manifest("finetune", name)}
        return {"model": self.manifest({"model": "models"}.get(kind, kind), name)}

    def checkpoint_weights(self, checkpoint: str) -> list[str]:
        """What stands for the weights of a merged model, which may be gone though its manifest is there."""
        kind, name = checkpoint.partition("+")[0].split("-", 1)
        return [f"{self.results}/merged/{name}.weights"] if kind == "merged" else []

    def asked_by(self, backend: str) -> list[str]:
        """The evaluations that an engine is asked."""
        return [name for name, node in self.config["evaluations"].items() if node["backend"] == backend]

    def shards(self, evaluation: str) -> list[str]:
        """The parts that an evaluation is asked in, in Snakemake's words for scattered items."""
        count = self.evaluation(evaluation)["shards"]
        return [f"{index}-of-{count}" for index in range(1, count + 1)]

    def answers(self, evaluation: str, checkpoint: str) -> list[str]:
        """The answer files of a run, one for each part."""
        return [f"{self._run_folder(evaluation, checkpoint)}/answers/{shard}.json" for shard in self.shards(evaluation)]

    def ask_params(self, name: str) -> str:
        """What answers depend on."""
        return as_json(self._asked(name))

    def baseline_params(self, name: str) -> str:
        """What the scores of answers that no model gave depend on."""
        return as_json({key: self.evaluation(name)[key] for key in ("split", "limit", "metrics", "chinese")})

    def parity_params(self, name: str) -> str:
        return as_json({**self._asked(name), "parity": self.evaluation(name)["parity"]})

    def evaluation_params(self, name: str) -> str:
        """All that the scores of an evaluation tell of its settings."""
        node = self.evaluation(name)
        judge = {"judge": without(node["judge"], "limits")} if "judge" in node else {}
        return as_json({**self._asked(name), "metrics": node["metrics"], "chinese": node["chinese"], **judge})

    def _asked(self, name: str) -> dict[str, Any]:
        node = self.evaluation(name)
        keys = [*_ASKED, "lmdeploy"] if node["backend"] == "lmdeploy" else _ASKED
        return {key: node[key] for key in keys}

    def evaluation_batch(self, name: str) -> int:
        """Questions that are answered at once in transformers."""
        default = _AT_ONCE_ON_A_GPU if self.resource("evaluations", name, "gpu") else _AT_ONCE
        return self.resource("evaluations", name, "micro_batch_size") or default

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
        found = [*self.scores(experiment), *(self._baselines(experiment, name) for name in evaluations)]
        return found + [file for name in evaluations for file in self._parity(experiment, name)]

    def _parity(self, experiment: str, evaluation: str) -> list[str]:
        """The comparison of engines, of the final checkpoint."""
        node = self.evaluation(evaluation)
        asked = node["backend"] == "lmdeploy" and node["parity"]
        folder = self._run_folder(evaluation, self.checkpoints(experiment)["after"])
        return [f"{folder}/parity.json"] if asked else []

    def comparison_params(self, experiment: str) -> str:
        """Evaluation -> folders of its runs, as ``compare_checkpoints`` takes them."""
        labels = self.checkpoints(experiment)
        described = {}
        for name in self.config["experiments"][experiment]["evaluations"]:
            folders = {label: self._run_folder(name, checkpoint) for label, checkpoint in labels.items()}
            ends = {label: folders.pop(label) for label in ("before", "after")}
            folders |= {label: self._run_folder(name, f"{labels['after']}+{label}") for label in self.unseeing(name)}
            described[name] = {
                **ends,
                "others": folders,
                "baselines": self._baselines(experiment, name),
                "general": self.evaluation(name)["general"],
                "parity": next(iter(self._parity(experiment, name)), None),
            }
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
