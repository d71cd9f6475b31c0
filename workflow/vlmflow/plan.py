"""What every job of the workflow depends on: exactly the configuration keys and manifests its result is made from.

The rules ask here for paths, parameters and resources, so that an edit has one obvious place. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from vlmflow.config import Config, resolve
from vlmflow.fingerprint import fingerprint

CHECKPOINT = r"(model|pretrain|converted)-[A-Za-z0-9_-]+(\+blind)?"
DATA_SCHEMAS = ("llava", "internvl-meta", "sharegpt", "swift", "messages", "table")
_TOKENS = ("max_length", "too_long", "max_dropped")
_SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
_TRAINING = ("epochs", "batch_size", "learning_rate", "weight_decay", "betas", "warmup_ratio", "schedule",
             "max_grad_norm", "precision", "seed")  # fmt: skip


class Plan:
    """The resolved configuration as questions that rules ask."""

    def __init__(self, config: Config) -> None:
        self.config = resolve(config)
        self.results: str = self.config["results"]

    # --- paths -------------------------------------------------------------------------------------------------------

    def manifest(self, stage: str, name: str) -> str:
        """The small file that stands for a whole artefact directory."""
        return f"{self.results}/{stage}/{name}/manifest.json"

    def source(self, name: str) -> str:
        """Manifest of a source, after its preparation if it has one."""
        return self.manifest("prepared" if self.config["sources"][name]["prepare"] else "sources", name)

    def dataset_input(self, name: str) -> list[str]:
        node = self.config["datasets"][name]
        return [self.source(node["source"])] if "source" in node else []

    def dataset_root(self, name: str) -> str:
        node = self.config["datasets"][name]
        return str(Path(self.source(node["source"])).parent) if "source" in node else node["path"]

    def generated(self, name: str) -> list[str]:
        """Manifest of the annotations that a model wrote for a data set, if one did."""
        return [self.manifest("generated", name)] if "generate" in self.config["datasets"][name] else []

    def pictures_folder(self, name: str) -> str:
        return str(Path(self.dataset_root(name)) / self.config["datasets"][name]["images"])

    def data_schemas(self) -> list[str]:
        """The schemas of the annotation formats (workflow/schemas)."""
        return [f"workflow/schemas/{name}.schema.yaml" for name in DATA_SCHEMAS]

    def model_inputs(self, name: str) -> list[str]:
        parts = self._weights(name).values()
        return sorted({self.manifest("sources", part["source"]) for part in parts if "source" in part})

    def model_of(self, node: str) -> str:
        """The model that a pretrain or finetune starts from."""
        if node in self.config["finetunes"]:
            node = self.config["finetunes"][node]["init"]
        return self.config["pretrains"][node]["model"] if node in self.config["pretrains"] else node

    def projector(self, finetune: str) -> list[str]:
        """Manifest of the pretrained projector that a finetune starts from, if any."""
        init = self.config["finetunes"][finetune]["init"]
        return [self.manifest("pretrain", init)] if init in self.config["pretrains"] else []

    def tokens(self, stage: str, name: str) -> str:
        """Manifest of the counted tokens of a ``pretrain`` or ``finetune``."""
        return self.manifest("tokens", f"{stage}-{name}")

    def training_data(self, stage: str, name: str) -> list[str]:
        """Manifests of the data sets of a ``pretrain`` or ``finetune``."""
        return [self.manifest("data", dataset) for dataset in self._training_datasets(stage, name)]

    def finetune_datasets(self, finetune: str) -> list[str]:
        return self.training_data("finetune", finetune)

    def _training_datasets(self, stage: str, name: str) -> list[str]:
        node = self.config[f"{stage}s"][name]
        return [node["dataset"]] if stage == "pretrain" else list(node["datasets"])

    def checkpoint_inputs(self, checkpoint: str) -> dict[str, str]:
        """Manifests that a checkpoint of an evaluation is loaded from: ``model`` and perhaps ``projector``."""
        kind, name = checkpoint.removesuffix("+blind").split("-", 1)
        if kind == "pretrain":
            return {
                "model": self.manifest("models", self.model_of(name)),
                "projector": self.manifest("pretrain", name),
            }
        return {"model": self.manifest({"model": "models", "converted": "converted"}[kind], name)}

    def leakage(self, finetune: str) -> str:
        """The comparison of a finetune's training pictures with those of its evaluations."""
        return f"{self.results}/leakage/{finetune}.json"

    def leakage_training(self, finetune: str) -> list[str]:
        """Manifests of all data that a finetune's weights saw, its pretrain's included."""
        node = self.config["finetunes"][finetune]
        pretrain = self.config["pretrains"].get(node["init"])
        names = [*node["datasets"], *([pretrain["dataset"]] if pretrain else [])]
        return [self.manifest("data", name) for name in dict.fromkeys(names)]

    def leakage_evaluations(self, finetune: str) -> dict[str, dict[str, str]]:
        """Evaluation -> data, split and policy, of the experiments that use ``finetune``."""
        nodes = [self.config["experiments"][name] for name in self.experiments()]
        names = {name for node in nodes if node["finetune"] == finetune for name in node["evaluations"]}
        return {
            name: {
                "data": self.manifest("data", self.evaluation(name)["dataset"]),
                "split": self.evaluation(name)["split"],
                "leakage": self.evaluation(name)["leakage"],
            }
            for name in sorted(names)
        }

    def leakage_inputs(self, finetune: str) -> list[str]:
        return sorted({node["data"] for node in self.leakage_evaluations(finetune).values()})

    def leakage_params(self, finetune: str) -> str:
        return _json(self.leakage_evaluations(finetune))

    # --- what an experiment consists of ------------------------------------------------------------------------------

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
        """Every data set that the chosen experiments train on or are measured on."""
        finetunes = [self.config["finetunes"][name] for name in self.finetunes()]
        evaluations = [self.config["evaluations"][name] for name in self._evaluations()]
        names = {name for node in finetunes for name in node["datasets"]} | {node["dataset"] for node in evaluations}
        return sorted(names | {self.config["pretrains"][name]["dataset"] for name in self.pretrains()})

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

    def _weights(self, model: str) -> dict[str, dict[str, Any]]:
        node = self.config["models"][model]
        return {part: node[part] for part in ("language", "vision", "checkpoint") if part in node}

    def _run_folder(self, evaluation: str, checkpoint: str) -> str:
        return f"{self.results}/evaluate/{evaluation}/{checkpoint}"

    def scores(self, experiment: str) -> list[str]:
        return [f"{self._run_folder(*run)}/scores.json" for run in self.runs(experiment)]

    def _baselines(self, experiment: str, evaluation: str) -> str:
        finetune = self.config["experiments"][experiment]["finetune"]
        return f"{self.results}/evaluate/{evaluation}/baselines-{finetune}.json"

    def comparison_inputs(self, experiment: str) -> list[str]:
        evaluations = self.config["experiments"][experiment]["evaluations"]
        return [*self.scores(experiment), *(self._baselines(experiment, name) for name in evaluations)]

    def _trained(self, experiment: str) -> dict[str, str]:
        """Stage -> artefact folder of everything an experiment trains or converts, in order."""
        finetune = self.config["experiments"][experiment]["finetune"]
        init = self.config["finetunes"][finetune]["init"]
        pretrain = {"pretrain": init} if init in self.config["pretrains"] else {}
        stages = {"models": self.model_of(finetune), **pretrain, "finetune": finetune, "merged": finetune,
                  "converted": finetune}  # fmt: skip
        return {stage: f"{self.results}/{stage}/{name}" for stage, name in stages.items()}

    def report_inputs(self, experiment: str) -> list[str]:
        """Small files that the report reads besides the comparison."""
        reports = [f"{self.results}/data/{name}/manifest.json" for name in self._datasets_of(experiment)]
        return [f"{folder}/manifest.json" for folder in self._trained(experiment).values()] + reports

    def _datasets_of(self, experiment: str) -> list[str]:
        return Plan({**self.config, "experiment": experiment}).datasets()

    # --- parameters: the configuration keys that a result depends on, as the JSON that a script takes ----------------

    def source_params(self, name: str) -> str:
        return _json(_without(self.config["sources"][name], "prepare"))

    def dataset_params(self, name: str) -> str:
        return _json(_without(self.config["datasets"][name], "source", "path", "repeat", "generate"))

    def generate_params(self, name: str) -> str:
        return _json(_without(self.config["datasets"][name]["generate"], "limits"))

    def generate_limits(self, name: str) -> str:
        return _json(self.config["datasets"][name]["generate"]["limits"])

    def model_params(self, name: str) -> str:
        """The node with each checkpoint as a path; unused keys of the other families are left out."""
        node = _without(self.config["models"][name], "resources", "language", "vision", "checkpoint")
        if node["family"] == "llava":
            node.pop("max_tiles")
        return _json({**node, **{part: self._weights_path(place) for part, place in self._weights(name).items()}})

    def _weights_path(self, place: dict[str, Any]) -> str:
        folder = Path(self.manifest("sources", place["source"])).parent if "source" in place else Path(place["path"])
        return str(folder / place["file"] if place["file"] else folder)

    def pretrain_params(self, name: str) -> str:
        node = self.config["pretrains"][name]
        return _json({**{key: node[key] for key in (*_TRAINING, "calibrate")}, **self._mix([node["dataset"]])})

    def finetune_params(self, name: str) -> str:
        node = self.config["finetunes"][name]
        unused = {"qlora": (), "lora": ("quantization",), "full": ("quantization", "lora")}[node["method"]]
        node = _without(node, "init", "datasets", "merge", "convert", "resources", *_TOKENS, *unused)
        return _json({**node, **self._mix(self.config["finetunes"][name]["datasets"])})

    def tokens_params(self, stage: str, name: str) -> str:
        node = self.config[f"{stage}s"][name]
        datasets = self._training_datasets(stage, name)
        return _json({**{key: node[key] for key in _TOKENS}, "datasets": datasets})

    def _mix(self, datasets: list[str] | dict[str, float]) -> dict[str, Any]:
        """How often training takes the records of each data set: its ``repeat``, and its weight if any have one."""
        return {
            "repeat": [_number(self.config["datasets"][name]["repeat"]) for name in datasets],
            "weights": [_number(weight) for weight in datasets.values()] if isinstance(datasets, dict) else None,
        }

    def merge_params(self, name: str) -> str:
        return _json(self.config["finetunes"][name]["merge"])

    def convert_params(self, name: str) -> str:
        return _json(self.config["finetunes"][name]["convert"])

    def evaluation_params(self, name: str) -> str:
        return _json(_without(self.evaluation(name), "dataset", "blind", "leakage", "resources"))

    def experiment_params(self, name: str) -> str:
        return _json({"name": name, "title": self.config["experiments"][name]["title"]})

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
        return _json(described)

    def report_params(self, experiment: str, config_files: list[str]) -> str:
        """Where the report finds curves, provenance and data reports, and how the experiment is made again."""
        folders = self._trained(experiment)
        files = " ".join(config_files)
        return _json(
            {
                "metrics": {
                    stage: f"{folders[stage]}/metrics.jsonl" for stage in ("pretrain", "finetune") if stage in folders
                },
                "provenance": [f"{folder}/provenance.json" for folder in folders.values()],
                "data_reports": [f"{self.results}/data/{name}/report.json" for name in self._datasets_of(experiment)],
                "example": f"{folders['finetune']}/example.json",
                "commands": [f"snakemake {experiment}" + (f" --configfile {files}" if files else "")],
            }
        )

    def code(self, script: str) -> str:
        """Fingerprint of a script and all it imports from the package."""
        return fingerprint(_SCRIPTS / f"{script}.py")

    def files(self, name: str) -> str:
        """Names, sizes and times below a data set's own folder, so that a changed picture is checked again.

        Pictures that a source brought are covered by its manifest.
        """
        node = self.config["datasets"][name]
        if "source" in node:
            return ""
        digest = hashlib.sha256()
        for folder, folders, files in os.walk(node["path"]):
            folders.sort()
            for file in sorted(files):
                state = (Path(folder) / file).lstat()  # a dangling link is a file too
                digest.update(f"{folder}/{file}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
        return digest.hexdigest()[:16]

    # --- resources: how a job runs, never part of its result ---------------------------------------------------------

    def resource(self, section: str, name: str, key: str) -> Any:
        return self.config[section][name]["resources"][key]

    def memory(self, section: str, name: str, attempt: int) -> int:
        """Main memory in MB; every retry asks for half as much again."""
        return int(self.resource(section, name, "mem_mb") * (1 + 0.5 * (attempt - 1)))

    def execution(self, section: str, name: str) -> str:
        """How a training job splits its work, as the JSON that the training scripts take."""
        keys = ("micro_batch_size", "gradient_checkpointing", "deepspeed", "workers", "checkpoint_steps")
        return _json({key: self.resource(section, name, key) for key in keys})

    def launcher(self, section: str, name: str) -> str:
        """``python``, or torchrun with one process per GPU."""
        gpus = self.resource(section, name, "gpu")
        return "python" if gpus < 2 else f"torchrun --standalone --nproc-per-node {gpus}"


def _without(node: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key not in keys}


def _number(value: float) -> float:
    """A whole number as ``int``, so that 1 and 1.0 are the same parameter."""
    return int(value) if value == int(value) else value


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
