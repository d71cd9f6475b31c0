"""What the tables over experiments depend on."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from vlmflow.plan.data import DataPlan
from vlmflow.plan.evaluation import EvaluationPlan
from vlmflow.plan.training import TrainingPlan
from vlmflow.plan.values import as_json, in_file, without
from vlmflow.sweeps import changes_scores, effective

_Inputs = dict[str, Any]
"""Name -> manifest; None for one that there should not be."""


class SweepPlan(DataPlan, TrainingPlan, EvaluationPlan):
    """Questions of the rules of tables."""

    def sweeps(self) -> list[str]:
        """The sweep chosen by ``--config experiment=NAME``, or all; none if that is a single experiment."""
        chosen = self.config["experiment"]
        return [name for name in self.config["sweeps"] if chosen in (None, name)]

    def table_inputs(self, sweep: str) -> list[str]:
        """Small files that tell of the variants of a sweep."""
        experiments = self.variants(sweep)
        comparisons = [self._comparison(experiment) for experiment in experiments]
        return comparisons + [self.manifest("finetune", self._finetune(experiment)) for experiment in experiments]

    def table_params(self, sweep: str) -> str:
        """Title, varied keys, and of each variant its experiment, finetune and values of those keys."""
        base = self.config["sweeps"][sweep]["base"]
        title = f"{sweep}: {self.config['experiments'][base]['title'] or base}"
        return as_json(self._table(title, self.variants(sweep), self._varied(sweep)))

    def results_params(self) -> str:
        """The same of all chosen experiments, with the keys of all their sweeps, and how each is made."""
        keys = dict.fromkeys(key for sweep in self.sweeps() for key in self._varied(sweep))
        table = self._table("All experiments", self.experiments(), list(keys))
        return as_json({**table, "made": {name: self._made(name) for name in self.experiments()}})

    def table_file(self, sweep: str) -> str:
        """A file with :meth:`table_params`, written now; it is called after its content, as the job may wait for days
        while other plans are made.
        """
        table = self.table_params(sweep)
        return in_file(f"{sweep}-{hashlib.sha256(table.encode()).hexdigest()[:12]}", table)

    def results_file(self) -> str:
        """A file with :meth:`results_params`, written now."""
        return in_file("all", self.results_params())

    def _table(self, title: str, experiments: list[str], keys: list[str]) -> dict[str, Any]:
        rows = [
            [name, self._finetune(name), *(effective(self.config, name, key) for key in keys)] for name in experiments
        ]
        return {"title": title, "keys": keys, "rows": rows}

    def _made(self, experiment: str) -> dict[str, Any]:
        """How an experiment's comparison is made: each step with its settings and the manifests that it starts from."""
        finetune = self._finetune(experiment)
        model, init = self.model_of(finetune), self.config["finetunes"][finetune]["init"]
        base, projector = {"model": self.manifest("models", model)}, next(iter(self.projector(finetune)), None)
        adapter, merged = self.manifest("finetune", finetune), self.manifest("merged", finetune)
        steps = [self._step("models", model, self.model_params(model), {})]
        if projector:
            steps += self._training_steps("pretrain", init, self.pretrain_params(init), base)
        steps += [
            *self._training_steps(
                "finetune", finetune, self.finetune_params(finetune), {**base, "projector": projector}
            ),
            self._step("merged", finetune, self.merge_params(finetune), {**base, "adapter": adapter}),
            self._step("converted", finetune, self.convert_params(finetune), {"model": merged}),
            *(self._answers(name, checkpoint) for name, checkpoint in self.runs(experiment)),
        ]
        folders = json.loads(self.comparison_params(experiment))
        scores = {name: [f"{ends[end]}/scores.json" for end in ("before", "after")] for name, ends in folders.items()}
        return {"steps": steps, "comparison": self._comparison(experiment), "scores": scores}

    def _training_steps(self, stage: str, name: str, params: str, inputs: _Inputs) -> list[dict[str, Any]]:
        """Counting the tokens of a training and training itself; XTuner's is imported without."""
        if "xtuner" in self.config[f"{stage}s"][name]:
            return [self._step(stage, name, params, inputs)]
        data = {f"data{index}": manifest for index, manifest in enumerate(self.training_data(stage, name))}
        counted = f"{stage}-{self.data_node(stage, name)}"
        return [
            self._step("tokens", counted, self.tokens_params(stage, name), {"model": inputs["model"], **data}),
            self._step(stage, name, params, {**inputs, "tokens": self.tokens(stage, name)}),
        ]

    def _step(self, stage: str, name: str, params: str, inputs: _Inputs) -> dict[str, Any]:
        # a model that workflows share names the files of the one that built it
        paths = ("language", "vision", "checkpoint") if stage == "models" and self.config["store"] else ()
        settings = without(json.loads(params), *paths)
        return {"file": f"{self.results}/{stage}/{name}/provenance.json", "settings": settings, "inputs": inputs}

    def _answers(self, evaluation: str, checkpoint: str) -> dict[str, Any]:
        """The step by which a checkpoint answers an evaluation."""
        data = self.manifest("data", self.evaluation(evaluation)["dataset"])
        return {
            "file": f"{self._run_folder(evaluation, checkpoint)}/scores.json",
            "settings": json.loads(self.evaluation_params(evaluation)),
            "inputs": {**self.checkpoint_inputs(evaluation, checkpoint), "data": data},
        }

    def _varied(self, sweep: str) -> list[str]:
        keys = [key for variant in self.config["sweeps"][sweep]["variants"] for key in variant if key != "name"]
        return [key for key in dict.fromkeys(keys) if changes_scores(key)]

    def _finetune(self, experiment: str) -> str:
        name: str = self.config["experiments"][experiment]["finetune"]
        return name

    def _comparison(self, experiment: str) -> str:
        return f"{self.results}/report/{experiment}/comparison.json"
