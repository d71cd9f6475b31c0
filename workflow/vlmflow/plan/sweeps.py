"""What the tables over experiments depend on."""

from __future__ import annotations

from vlmflow.plan.nodes import Nodes
from vlmflow.plan.values import as_json
from vlmflow.sweeps import effective


class SweepPlan(Nodes):
    """Questions of the rules of tables."""

    def sweeps(self) -> list[str]:
        """The sweep chosen by ``--config experiment=NAME``, or all; none if that is a single experiment."""
        chosen = self.config["experiment"]
        return [name for name in self.config["sweeps"] if chosen in (None, name)]

    def table_inputs(self, sweep: str) -> list[str]:
        """Small files that tell of the variants of a sweep."""
        experiments = self.variants(sweep)
        comparisons = [f"{self.results}/report/{experiment}/comparison.json" for experiment in experiments]
        return comparisons + [self.manifest("finetune", self._finetune(experiment)) for experiment in experiments]

    def table_params(self, sweep: str) -> str:
        """Title, varied keys, and of each variant its experiment, finetune and values of those keys."""
        base = self.config["sweeps"][sweep]["base"]
        title = f"{sweep}: {self.config['experiments'][base]['title'] or base}"
        return self._table(title, self.variants(sweep), self._varied(sweep))

    def results_params(self) -> str:
        """The same of all chosen experiments, with the keys of all their sweeps."""
        keys = dict.fromkeys(key for sweep in self.sweeps() for key in self._varied(sweep))
        return self._table("All experiments", self.experiments(), list(keys))

    def _table(self, title: str, experiments: list[str], keys: list[str]) -> str:
        rows = [
            [name, self._finetune(name), *(effective(self.config, name, key) for key in keys)] for name in experiments
        ]
        return as_json({"title": title, "keys": keys, "rows": rows})

    def _varied(self, sweep: str) -> list[str]:
        keys = [key for variant in self.config["sweeps"][sweep]["variants"] for key in variant if key != "name"]
        return [key for key in dict.fromkeys(keys) if ".resources." not in key]

    def _finetune(self, experiment: str) -> str:
        name: str = self.config["experiments"][experiment]["finetune"]
        return name
