"""What is wrong with the evaluations of a configuration, before anything runs. Imports no torch and no metric."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vlmflow.evaluation.judge.check import judge_contradictions
from vlmflow.evaluation.metrics import unknown_metrics
from vlmflow.schema import nearest

_SECTIONS = {"model": "models", "pretrain": "pretrains"}
"""Where a kind of checkpoint has its name from, besides ``finetunes``."""


def unanswerable(config: dict[str, Any]) -> Iterator[str]:
    """Evaluations and checkpoints that no job could make; ``config`` has all its defaults."""
    for name, node in config["evaluations"].items():
        yield from (f"evaluations.{name}.{problem}" for problem in _evaluation(node))
        shares = config["datasets"].get(node["dataset"], {}).get("split", {})
        if shares.get(node["split"]) == 0:
            place = f"datasets.{node['dataset']}.split.{node['split']}"
            yield f"evaluations.{name}.split: {place} is 0, so that there is nothing to ask"
    yield from judge_contradictions(config)
    for name, node in config["experiments"].items():
        for checkpoint in node["checkpoints"]:
            if problem := _checkpoint(config, node, checkpoint):
                yield f"experiments.{name}.checkpoints: {checkpoint}: {problem}"


def _evaluation(node: dict[str, Any]) -> Iterator[str]:
    yield from (f"metrics: {problem}" for problem in unknown_metrics(node["metrics"]))
    if node["prompt"] is not None and node["prompt"].count("{question}") != 1:
        yield "prompt: write {question} once, where the question is to stand"
    gpus = node["resources"]["gpu"]
    if node["backend"] == "lmdeploy" and not gpus:
        yield "resources.gpu: LMDeploy needs a GPU; set it to 1, or `backend: transformers`"
    if node["backend"] == "transformers" and gpus > 1:
        yield "resources.gpu: transformers answers on one GPU; spread the questions with `shards`"


def _checkpoint(config: dict[str, Any], experiment: dict[str, Any], checkpoint: str) -> str | None:
    kind, _, name = checkpoint.partition("-")
    section = _SECTIONS.get(kind, "finetunes")
    name = name or experiment["finetune"]
    if name not in config[section]:
        return f"no '{name}' in {section}{nearest(name, list(config[section]))}"
    if kind == "merged" and not config["finetunes"][name]["merge"]["keep"]:
        return f"its weights are deleted after conversion; set finetunes.{name}.merge.keep to true"
    asked = [config["evaluations"][other] for other in experiment["evaluations"] if other in config["evaluations"]]
    if kind == "adapter" and any(node["backend"] == "lmdeploy" for node in asked):
        return "LMDeploy loads whole model directories; name `merged`, or ask with `backend: transformers`"
    return None
