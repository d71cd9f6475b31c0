"""What the workflow keeps on the disk: the folders of all nodes, and what is shared or let go."""

from __future__ import annotations

import json
import shlex

from vlmflow.plan.nodes import Nodes
from vlmflow.plan.values import in_file


class HousekeepingPlan(Nodes):
    """Questions about disk space."""

    def folders(self) -> str:
        """Stage -> names of its folders in the results, in order, of all nodes, whatever experiment was chosen."""
        config = self.config
        trainings = {"pretrain": list(config["pretrains"]), "finetune": list(config["finetunes"])}
        tokens = [f"{stage}-{name}" for stage, names in trainings.items() for name in names]
        finetunes, datasets = trainings["finetune"], config["datasets"]
        return json.dumps(
            {
                "sources": list(config["sources"]),
                "prepared": [name for name, node in config["sources"].items() if node["prepare"]],
                "generated": [name for name, node in datasets.items() if "generate" in node],
                "data": list(datasets),
                "models": list(config["models"]),
                "tokens": tokens,
                **trainings,
                "assembled": trainings["pretrain"],
                "merged": finetunes,
                "converted": finetunes,
                "official": [name for name in finetunes if config["finetunes"][name]["convert"]["official"]],
                "evaluate": list(config["evaluations"]),
                "report": list(config["experiments"]),
                "tables": ["all", *config["sweeps"]],
            }
        )

    def folders_file(self) -> str:
        """A file with :meth:`folders`, written now."""
        return in_file("disk", self.folders())

    def keeps_merged(self, finetune: str) -> bool:
        """Whether the merged weights stay when the deployment directory is made."""
        return bool(self.config["finetunes"][finetune]["merge"]["keep"])

    def store(self) -> str:
        """The option by which jobs share what they make with other workflows."""
        return f"--store {shlex.quote(self.config['store'])}" if self.config["store"] else ""
