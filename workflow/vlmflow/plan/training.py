"""What building, training, merging and converting depend on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vlmflow.methods import UNUSED
from vlmflow.plan.nodes import LAUNCH, Nodes
from vlmflow.plan.values import TOKENS, as_json, number, without

_TRAINING = ("epochs", "batch_size", "learning_rate", "weight_decay", "betas", "warmup_ratio", "schedule",
             "max_grad_norm", "precision", "seed")  # fmt: skip
_EXECUTION = ("micro_batch_size", "gradient_checkpointing", "compile", "deepspeed", "workers", "gpu_memory_gb",
              "feature_cache_gb", "checkpoint_steps", "checkpoint_minutes", "checkpoints_kept")  # fmt: skip


class TrainingPlan(Nodes):
    """Questions of the rules pretrain, finetune and convert."""

    def model_inputs(self, name: str) -> list[str]:
        parts = self._weights(name).values()
        return sorted({self.manifest("sources", part["source"]) for part in parts if "source" in part})

    def model_files(self, name: str) -> str:
        """State of checkpoints of the user's own: the model is built again when one changes."""
        return self._state(self._weights(name).values())

    def model_params(self, name: str) -> str:
        """The node with each checkpoint as a path; unused keys of the other families are left out."""
        left_out = ("resources", "registry", "language", "vision", "checkpoint")
        node = without(self.config["models"][name], *left_out)
        if node["family"] == "llava":
            node.pop("max_tiles")
        return as_json({**node, **{part: self._weights_path(place) for part, place in self._weights(name).items()}})

    def trained(self) -> list[str]:
        """Finetunes that are trained here."""
        return [name for name, node in self.config["finetunes"].items() if "xtuner" not in node]

    def imported(self) -> list[str]:
        """Finetunes that XTuner trained."""
        return [name for name, node in self.config["finetunes"].items() if "xtuner" in node]

    def officials(self) -> list[str]:
        """Finetunes of the chosen experiments that are also written in the official layout."""
        return [name for name in self.finetunes() if self.config["finetunes"][name]["convert"]["official"]]

    def import_inputs(self, name: str) -> list[str]:
        place = self.config["finetunes"][name]["xtuner"]
        return [self.manifest("sources", place["source"])] if "source" in place else []

    def import_checkpoint(self, name: str) -> str:
        return self._weights_path(self.config["finetunes"][name]["xtuner"])

    def import_files(self, name: str) -> str:
        """State of a checkpoint of the user's own."""
        return self._state([self.config["finetunes"][name]["xtuner"]])

    def _state(self, places: Iterable[dict[str, Any]]) -> str:
        own = [self._weights_path(place) for place in places if "path" in place]
        return self.own_files.state(own) if own else ""

    def _weights(self, model: str) -> dict[str, dict[str, Any]]:
        node = self.config["models"][model]
        return {part: node[part] for part in ("language", "vision", "checkpoint") if part in node}

    def _weights_path(self, place: dict[str, Any]) -> str:
        own = "path" in place
        folder = Path(place["path"]).expanduser() if own else Path(self.manifest("sources", place["source"])).parent
        return str(folder / place["file"] if place["file"] else folder)

    def projector(self, finetune: str) -> list[str]:
        """Manifest of the pretrained projector that a finetune starts from, if any."""
        init = self.config["finetunes"][finetune]["init"]
        return [self.manifest("pretrain", init)] if init in self.config["pretrains"] else []

    def pretrain_params(self, name: str) -> str:
        node = self.config["pretrains"][name]
        return as_json(
            {**{key: node[key] for key in (*_TRAINING, "train", "calibrate")}, **self._mix([node["dataset"]])}
        )

    def finetune_params(self, name: str) -> str:
        node = self.config["finetunes"][name]
        unused = ("init", "datasets", "merge", "convert", "resources", "xtuner", *TOKENS, *UNUSED[node["method"]])
        node = without(node, *unused)
        return as_json({**node, **self._mix(self.config["finetunes"][name]["datasets"])})

    def _mix(self, datasets: list[str] | dict[str, float]) -> dict[str, Any]:
        """How often training takes the records of each data set: its ``repeat``, and its weight if any have one."""
        return {
            "repeat": [number(self.config["datasets"][name]["repeat"]) for name in datasets],
            "weights": [number(weight) for weight in datasets.values()] if isinstance(datasets, dict) else None,
        }

    def merge_params(self, name: str) -> str:
        return as_json(without(self.config["finetunes"][name]["merge"], "keep"))

    def convert_params(self, name: str) -> str:
        return as_json(without(self.config["finetunes"][name]["convert"], "official"))

    def execution(self, section: str, name: str) -> str:
        """How a training job splits its work, as the JSON that the training scripts take."""
        return as_json({key: self.resource(section, name, key) for key in _EXECUTION})

    def launcher(self, section: str, name: str) -> str:
        """The command that starts a stage's processes, one per GPU; it passes requests to stop on to them."""
        nodes, gpus = self.resource(section, name, "nodes"), self.resource(section, name, "gpu")
        cpus = self.resource(section, name, "cpus")
        each = gpus // nodes
        options = f"--nodes {nodes} --cpus {cpus} " * (nodes > 1) + f"--gpus {each} --processes {each} " * (gpus > 0)
        return f"python {LAUNCH} {options}--"
