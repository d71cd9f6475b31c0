"""What an experiment consists of: its nodes, checkpoints and runs, and the resources of their jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmflow.config import Config, resolve
from vlmflow.fingerprint import fingerprint

LAUNCH = "workflow/scripts/launch.py"
_SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


class Nodes:
    """The resolved configuration; the stages' questions are asked of its subclasses."""

    def __init__(self, config: Config) -> None:
        self.config = resolve(config)
        self.results: str = self.config["results"]

    def manifest(self, stage: str, name: str) -> str:
        """The small file that stands for a whole artefact directory."""
        return f"{self.results}/{stage}/{name}/manifest.json"

    def experiments(self) -> list[str]:
        """The experiment chosen by ``--config experiment=NAME``, or all."""
        chosen = self.config["experiment"]
        return [chosen] if chosen else list(self.config["experiments"])

    def finetunes(self) -> list[str]:
        return sorted({self.config["experiments"][name]["finetune"] for name in self.experiments()})

    def pretrains(self) -> list[str]:
        inits = {self.config["finetunes"][name]["init"] for name in self.finetunes()}
        return sorted(inits & set(self.config["pretrains"]))

    def datasets(self) -> list[str]:
        """Every data set; if an experiment was chosen, those that it trains on or is measured on."""
        if self.config["experiment"] is None:
            return sorted(self.config["datasets"])
        finetunes = [self.config["finetunes"][name] for name in self.finetunes()]
        evaluations = [self.config["evaluations"][name] for name in self._evaluations()]
        names = {name for node in finetunes for name in node["datasets"]} | {node["dataset"] for node in evaluations}
        return sorted(names | {self.config["pretrains"][name]["dataset"] for name in self.pretrains()})

    def model_of(self, node: str) -> str:
        """The model that a pretrain or finetune starts from."""
        if node in self.config["finetunes"]:
            node = self.config["finetunes"][node]["init"]
        return self.config["pretrains"][node]["model"] if node in self.config["pretrains"] else node

    def checkpoints(self, experiment: str) -> dict[str, str]:
        """Label -> checkpoint of an experiment, in the order of training; ``before`` and ``after`` are always there."""
        finetune = self.config["experiments"][experiment]["finetune"]
        init = self.config["finetunes"][finetune]["init"]
        pretrained = {"pretrained": f"pretrain-{init}"} if init in self.config["pretrains"] else {}
        return {"before": f"model-{self.model_of(finetune)}", **pretrained, "after": f"converted-{finetune}"}

    def runs(self, experiment: str) -> list[tuple[str, str]]:
        """Every (evaluation, checkpoint) of an experiment, the blind runs of the final checkpoint included."""
        checkpoints = self.checkpoints(experiment)
        evaluations = self.config["experiments"][experiment]["evaluations"]
        blind = [(name, checkpoints["after"] + "+blind") for name in evaluations if self.evaluation(name)["blind"]]
        return [(name, checkpoint) for name in evaluations for checkpoint in checkpoints.values()] + blind

    def evaluation(self, name: str) -> dict[str, Any]:
        node: dict[str, Any] = self.config["evaluations"][name]
        return node

    def _evaluations(self) -> list[str]:
        nodes = [self.config["experiments"][name] for name in self.experiments()]
        return sorted({evaluation for node in nodes for evaluation in node["evaluations"]})

    def _training_datasets(self, stage: str, name: str) -> list[str]:
        node = self.config[f"{stage}s"][name]
        return [node["dataset"]] if stage == "pretrain" else list(node["datasets"])

    def training_data(self, stage: str, name: str) -> list[str]:
        """Manifests of the data sets of a ``pretrain`` or ``finetune``."""
        return [self.manifest("data", dataset) for dataset in self._training_datasets(stage, name)]

    def resource(self, section: str, name: str, key: str) -> Any:
        return self.config[section][name]["resources"][key]

    def memory(self, section: str, name: str, attempt: int) -> int:
        """Main memory of each node in MB; every retry asks for half as much again."""
        return growing(self.resource(section, name, "mem_mb"), attempt)

    def runtime(self, section: str, name: str, attempt: int) -> int:
        """Time limit in minutes of a stage that starts anew; every retry asks for half as much again."""
        return growing(self.resource(section, name, "runtime"), attempt)

    def over_nodes(self, section: str, name: str) -> dict[str, int | str | None]:
        """Resources by which Slurm grants a training the same GPUs on each of its nodes; None leaves one out.

        One launcher a node (``tasks``), and no task per GPU, which is what the executor makes of ``tasks`` otherwise.
        """
        nodes, gpus = self.resource(section, name, "nodes"), self.resource(section, name, "gpu")
        several = {"mpi": "srun", "tasks": nodes, "tasks_per_gpu": 0, "gres": f"gpu:{gpus // nodes}"}
        return {"nodes": nodes, **(several if nodes > 1 else dict.fromkeys(several))}

    def code(self, script: str) -> str:
        """Fingerprint of a script and all it imports from the package."""
        return fingerprint(_SCRIPTS / f"{script}.py")


def growing(value: int, attempt: int) -> int:
    """What the ``attempt``-th start of a job asks for (1 is the first)."""
    return int(value * (1 + 0.5 * (attempt - 1)))
