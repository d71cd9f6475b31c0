"""What the stages from download to token budget depend on."""

from __future__ import annotations

from pathlib import Path

from vlmflow.plan.nodes import Nodes
from vlmflow.plan.values import TOKENS, as_json, state_of_files, without

DATA_SCHEMAS = ("llava", "internvl-meta", "sharegpt", "swift", "messages", "table")


class DataPlan(Nodes):
    """Questions of the rules fetch, data and tokens."""

    def source(self, name: str) -> str:
        """Manifest of a source, after its preparation if it has one."""
        return self.manifest("prepared" if self.config["sources"][name]["prepare"] else "sources", name)

    def source_params(self, name: str) -> str:
        return as_json(without(self.config["sources"][name], "prepare"))

    def source_files(self, name: str) -> str:
        """Names, sizes and times of a source's own file or folder, so that it is fetched again when it changes."""
        node = self.config["sources"][name]
        return state_of_files(node["path"]) if "path" in node else ""

    def dataset_input(self, name: str) -> list[str]:
        node = self.config["datasets"][name]
        return [self.source(node["source"])] if "source" in node else []

    def dataset_root(self, name: str) -> str:
        node = self.config["datasets"][name]
        return str(Path(self.source(node["source"])).parent) if "source" in node else node["path"]

    def pictures_folder(self, name: str) -> str:
        return str(Path(self.dataset_root(name)) / self.config["datasets"][name]["images"])

    def dataset_params(self, name: str) -> str:
        return as_json(without(self.config["datasets"][name], "source", "path", "repeat", "generate"))

    def files(self, name: str) -> str:
        """Names, sizes and times below a data set's own folder, so that a changed picture is checked again.

        Pictures that a source brought are covered by its manifest.
        """
        node = self.config["datasets"][name]
        return "" if "source" in node else state_of_files(node["path"])

    def data_schemas(self) -> list[str]:
        """The schemas of the annotation formats (workflow/schemas)."""
        return [f"workflow/schemas/{name}.schema.yaml" for name in DATA_SCHEMAS]

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
        return as_json(self.leakage_evaluations(finetune))

    def tokens(self, stage: str, name: str) -> str:
        """Manifest of the counted tokens of a ``pretrain`` or ``finetune``."""
        return self.manifest("tokens", f"{stage}-{name}")

    def tokens_params(self, stage: str, name: str) -> str:
        node = self.config[f"{stage}s"][name]
        datasets = self._training_datasets(stage, name)
        return as_json({**{key: node[key] for key in TOKENS}, "datasets": datasets})
