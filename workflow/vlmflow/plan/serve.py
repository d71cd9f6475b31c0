"""What the page for trying an experiment's models shows."""

from __future__ import annotations

from typing import Any

from vlmflow.errors import UserError
from vlmflow.plan.nodes import Nodes


class ServePlan(Nodes):
    """Questions of the rule serve."""

    def served(self) -> dict[str, str]:
        """Manifests of the chosen experiment's models ``before`` and ``after``, and of the ``data`` it is measured on.

        Raises :class:`UserError` unless one experiment is chosen, or there is only one.
        """
        node = self._served_node()
        finetune = node["finetune"]
        return {
            "before": self.manifest("models", self.model_of(finetune)),
            "after": self.manifest("converted", finetune),
            "data": self.manifest("data", self.evaluation(node["evaluations"][0])["dataset"]),
        }

    def served_split(self) -> str:
        """The split that the first evaluation asks."""
        split: str = self.evaluation(self._served_node()["evaluations"][0])["split"]
        return split

    def served_title(self) -> str:
        """The experiment's title, else its name."""
        title: str = self._served_node()["title"] or self.experiments()[0]
        return title

    def _served_node(self) -> dict[str, Any]:
        names = self.experiments()
        if len(names) > 1:
            advice = f"choose one: snakemake serve --config experiment={names[0]}; there is {', '.join(names)}"
            raise UserError(f"{len(names)} experiments, and a page shows one", advice)
        node: dict[str, Any] = self.config["experiments"][names[0]]
        return node
