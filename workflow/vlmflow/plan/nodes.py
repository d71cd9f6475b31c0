"""What an experiment consists of: its nodes, checkpoints and runs, and the resources of their jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmflow.config import Config, resolve
from vlmflow.errors import UserError
from vlmflow.fingerprint import code_of
from vlmflow.plan.own_files import OwnFiles
from vlmflow.plan.values import as_json
from vlmflow.sweeps import data_nodes, experiment_of

LAUNCH = "workflow/scripts/launch.py"
_SBATCH = "--signal=TERM@300 --open-mode=append"
_SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


class Nodes:
    """The resolved configuration; the stages' questions are asked of its subclasses."""

    def __init__(self, config: Config) -> None:
        self.config = resolve(config)
        self.results: str = self.config["results"]
        self._data_nodes = data_nodes(self.config)
        self.own_files = OwnFiles(Path(self.results) / "cache" / "own_files")

    def manifest(self, stage: str, name: str) -> str:
        """The small file that stands for a whole artefact directory."""
        return f"{self.results}/{stage}/{name}/manifest.json"

    def experiments(self) -> list[str]:
        """The experiment, or all of the sweep, chosen by ``--config experiment=NAME``; else every one."""
        chosen = self.config["experiment"]
        if chosen in self.config["sweeps"]:
            return self.variants(chosen)
        return [chosen] if chosen else list(self.config["experiments"])

    def variants(self, sweep: str) -> list[str]:
        """The experiments that a sweep consists of; its base may be one of them."""
        node = self.config["sweeps"][sweep]
        return [experiment_of(sweep, node["base"], variant) for variant in node["variants"]]

    def finetunes(self) -> list[str]:
        return sorted({self.config["experiments"][name]["finetune"] for name in self.experiments()})

    def pretrains(self) -> list[str]:
        inits = {self.config["finetunes"][name]["init"] for name in self.finetunes()}
        return sorted(inits & set(self.config["pretrains"]))

    def datasets(self) -> list[str]:
        """Every data set; if an experiment was chosen, those that it trains on or is measured on."""
        chosen = self.config["experiment"] is not None
        return self.datasets_of(self.experiments()) if chosen else sorted(self.config["datasets"])

    def datasets_of(self, experiments: list[str]) -> list[str]:
        """The data sets that experiments train on or are measured on."""
        nodes = [self.config["experiments"][name] for name in experiments]
        finetunes = [self.config["finetunes"][node["finetune"]] for node in nodes]
        inits = {node["init"] for node in finetunes} & set(self.config["pretrains"])
        names = {name for node in finetunes for name in node["datasets"]}
        names |= {self.evaluation(name)["dataset"] for node in nodes for name in node["evaluations"]}
        return sorted(names | {self.config["pretrains"][name]["dataset"] for name in inits})

    def model_of(self, node: str) -> str:
        """The model that a pretrain or finetune starts from."""
        if node in self.config["finetunes"]:
            node = self.config["finetunes"][node]["init"]
        return self.config["pretrains"][node]["model"] if node in self.config["pretrains"] else node

    def checkpoints(self, experiment: str) -> dict[str, str]:
        """Label -> checkpoint of an experiment, in the order of training; ``before`` and ``after`` are always there.

        Further ones that it names stand between them, under that name.
        """
        node = self.config["experiments"][experiment]
        finetune = node["finetune"]
        init = self.config["finetunes"][finetune]["init"]
        found = {"before": f"model-{self.model_of(finetune)}"}
        if init in self.config["pretrains"]:
            found["pretrained"] = f"pretrain-{init}"
        for name in node["checkpoints"]:
            found[name] = name if "-" in name else f"{name}-{finetune}"
        return {**found, "after": f"converted-{finetune}"}

    def runs(self, experiment: str) -> list[tuple[str, str]]:
        """Every (evaluation, checkpoint) of an experiment, the blind runs of the final checkpoint included."""
        checkpoints = self.checkpoints(experiment)
        evaluations = self.config["experiments"][experiment]["evaluations"]
        runs = [(name, checkpoint) for name in evaluations for checkpoint in checkpoints.values()]
        runs += [(name, f"{checkpoints['after']}+{label}") for name in evaluations for label in self.unseeing(name)]
        return list(dict.fromkeys(runs))

    def unseeing(self, evaluation: str) -> list[str]:
        """How the final checkpoint is also asked without the right pictures: ``blind`` (shuffled ones), ``blank``."""
        chosen = self.evaluation(evaluation)["blind"]
        return ["blank"] if chosen == "blank" else ["blind"] if chosen else []

    def evaluation(self, name: str) -> dict[str, Any]:
        node: dict[str, Any] = self.config["evaluations"][name]
        return node

    def data_node(self, stage: str, name: str) -> str:
        """The ``pretrain`` or ``finetune`` that stands for all variants in a sweep with the same data."""
        return self._data_nodes.get((stage, name), name)

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

    def check_gpus(self, most: int) -> None:
        """Raise :class:`UserError` if a stage needs more GPUs than jobs may use (``resources`` of a profile).

        Snakemake would lower what the job is counted for, and start it all the same.
        """
        asked = {name for one in self.experiments() for name in self.config["experiments"][one]["evaluations"]}
        stages = {"pretrains": self.pretrains(), "finetunes": self.finetunes(), "evaluations": sorted(asked)}
        needs = {f"{part}.{name}": self.resource(part, name, "gpu") for part, names in stages.items() for name in names}
        over = [f"{place} asks for {gpus}" for place, gpus in needs.items() if gpus > most]
        if over:
            raise UserError(
                f"jobs may use {most} GPU(s) at once, and {', '.join(over)}",
                "raise `gpu` under `resources` in the profile (or --resources gpu=N), or lower the stage's",
            )

    def over_nodes(self, section: str, name: str) -> dict[str, int | str | None]:
        """Resources by which Slurm grants a training its GPUs, the same on each of its nodes; None leaves one out.

        Several nodes: one launcher on each (``tasks``), no task per GPU, which is what the executor makes of ``tasks``
        otherwise, and GPUs by ``gres`` alone, which is counted per node. Five minutes before the time limit it is asked
        to stop; the log of all its starts is kept.
        """
        nodes, gpus = self.resource(section, name, "nodes"), self.resource(section, name, "gpu")
        several = {"mpi": "srun", "tasks": nodes, "tasks_per_gpu": 0, "gres": f"gpu:{gpus // nodes}"}
        if nodes > 1:
            return {"nodes": nodes, "gpu": None, **several, "slurm_extra": _SBATCH}
        return {"nodes": 1, "gpu": gpus, **dict.fromkeys(several), "slurm_extra": _SBATCH}

    def code(self, script: str) -> str:
        """Hashes of a script and of all that it imports from the package."""
        return as_json({"code": code_of(_SCRIPTS / f"{script}.py")})


def growing(value: int, attempt: int) -> int:
    """What the ``attempt``-th start of a job asks for (1 is the first)."""
    return int(value * (1 + 0.5 * (attempt - 1)))
