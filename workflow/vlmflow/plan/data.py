"""What the stages from download to token budget depend on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vlmflow.files import sha256_json
from vlmflow.plan.nodes import Nodes
from vlmflow.plan.values import TOKENS, as_json, without
from vlmflow.schema import schema

DATA_SCHEMAS = ("llava", "internvl-meta", "sharegpt", "swift", "messages", "table")


class DataPlan(Nodes):
    """Questions of the rules fetch, data and tokens."""

    def source(self, name: str) -> str:
        """Manifest of a source, after its preparation if it has one."""
        return self.manifest("prepared" if self.config["sources"][name]["prepare"] else "sources", name)

    def source_params(self, name: str) -> str:
        return as_json(without(self.config["sources"][name], "prepare"))

    def source_files(self, name: str) -> str:
        """State of a source's own file or folder, so that it is fetched again when it changes."""
        node = self.config["sources"][name]
        return self.own_files.state([node["path"]]) if "path" in node else ""

    def dataset_input(self, name: str) -> list[str]:
        node = self.config["datasets"][name]
        return [self.source(node["source"])] if "source" in node else []

    def dataset_root(self, name: str) -> str:
        node = self.config["datasets"][name]
        return str(Path(self.source(node["source"])).parent) if "source" in node else _own(node)

    def pictures_folder(self, name: str) -> str:
        return str(Path(self.dataset_root(name)) / self.config["datasets"][name]["images"])

    def dataset_params(self, name: str) -> str:
        return as_json(without(self.config["datasets"][name], "source", "path", "repeat", "generate"))

    def files(self, name: str) -> str:
        """State of a data set's own folder, so that a changed picture is checked again.

        Pictures that a source brought are covered by its manifest.
        """
        node = self.config["datasets"][name]
        return "" if "source" in node else self.own_files.state([_own(node)])

    def data_schemas(self) -> str:
        """What the schemas of the annotation formats say (workflow/schemas), less their descriptions."""
        return as_json({"schemas": {name: sha256_json(_rules(schema(name)))[:8] for name in DATA_SCHEMAS}})

    def generated(self, name: str) -> list[str]:
        """Manifest of the annotations that a model wrote for a data set, if one did."""
        return [self.manifest("generated", name)] if "generate" in self.config["datasets"][name] else []

    def generate_params(self, name: str) -> str:
        return as_json(without(self.config["datasets"][name]["generate"], "limits"))

    def generate_limits(self, name: str) -> str:
        return as_json(self.config["datasets"][name]["generate"]["limits"])

    def leakage_training(self, finetune: str) -> list[str]:
        """Manifests of all data that a finetune's weights saw, its pretrain's included."""
        node = self.config["finetunes"][finetune]
        pretrain = self.config["pretrains"].get(node["init"])
        names = [*node["datasets"], *([pretrain["dataset"]] if pretrain else [])]
        return [self.manifest("data", name) for name in dict.fromkeys(names)]

    def leakage_evaluations(self, finetune: str) -> dict[str, dict[str, str]]:
        """Evaluation -> data, split and policy, of the experiments that use ``finetune`` or the same data."""
        nodes = [self.config["experiments"][name] for name in self.experiments()]
        used = [node for node in nodes if self.data_node("finetune", node["finetune"]) == finetune]
        names = {name for node in used for name in node["evaluations"]}
        return {
            name: {
                "data": self.manifest("data", self.evaluation(name)["dataset"]),
                "split": self.evaluation(name)["split"],
                "leakage": self.evaluation(name)["leakage"],
            }
            for name in sorted(names)
        }

    def leakage_gate(self, finetune: str) -> str:
        """The file that is there once no leaked picture was found."""
        return f"{self.results}/leakage/{self.data_node('finetune', finetune)}.passed"

    def leakage_inputs(self, finetune: str) -> list[str]:
        return sorted({node["data"] for node in self.leakage_evaluations(finetune).values()})

    def leakage_params(self, finetune: str) -> str:
        return as_json(self.leakage_evaluations(finetune))

    def tokens(self, stage: str, name: str) -> str:
        """Manifest of the counted tokens of a ``pretrain`` or ``finetune``."""
        return self.manifest("tokens", f"{stage}-{self.data_node(stage, name)}")

    def tokens_params(self, stage: str, name: str) -> str:
        node = self.config[f"{stage}s"][name]
        datasets = self._training_datasets(stage, name)
        return as_json({**{key: node[key] for key in TOKENS}, "datasets": datasets})


def _rules(node: Any) -> Any:
    """A JSON schema less what it says to people."""
    if isinstance(node, list):
        return [_rules(part) for part in node]
    if isinstance(node, dict):
        said = {key for key in ("title", "description", "$comment") if isinstance(node.get(key), str)}
        return {key: _rules(value) for key, value in node.items() if key not in said}
    return node


def _own(node: dict[str, Any]) -> str:
    """The folder of a data set of the user's own, in one spelling."""
    return os.path.normpath(node["path"])
