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
        finetune = self._served_node()["finetune"]
        return {
            "before": self.manifest("models", self.model_of(finetune)),
            "after": self.manifest("converted", finetune),
            "data": self.manifest("data", self._served_evaluation()["dataset"]),
        }

    def served_options(self) -> list[str]:
        """Options of `vlmflow app` that ask as the evaluation does: an example is answered there as in the report."""
        node = self._served_evaluation()
        options = ["--split", node["split"], "--max-new-tokens", str(node["max_new_tokens"])]
        if node["prompt"] is not None:
            options += ["--prompt", node["prompt"]]
        model = self.config["models"][self.model_of(self._served_node()["finetune"])]
        if node["max_tiles"] is not None and model["family"] == "internvl":  # nothing else has tiles
            options += ["--max-tiles", str(node["max_tiles"])]
        return options

    def served_title(self) -> str:
        """The experiment's title, else its name."""
        title: str = self._served_node()["title"] or self.experiments()[0]
        return title

    def _served_evaluation(self) -> dict[str, Any]:
        """The evaluation of the report's headline: the first that is not general."""
        nodes = [self.evaluation(name) for name in self._served_node()["evaluations"]]
        return next((node for node in nodes if not node["general"]), nodes[0])

    def _served_node(self) -> dict[str, Any]:
        names = self.experiments()
        if len(names) > 1:
            advice = f"choose one: snakemake serve --config experiment={names[0]}; there is {', '.join(names)}"
            raise UserError(f"{len(names)} experiments, and a page shows one", advice)
        node: dict[str, Any] = self.config["experiments"][names[0]]
        return node
