"""The configuration: checked against its schema, filled with defaults, cross-referenced. Imports no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema

from vlmflow.cost.speed import CARDS
from vlmflow.errors import UserError
from vlmflow.evaluation.settings import unanswerable
from vlmflow.models.published import fill_published
from vlmflow.schema import SCHEMA, describe, fill_defaults, given, infinite, is_echo, nearest, schema
from vlmflow.sweeps import expand

Config = dict[str, Any]

_ROOT = Path(__file__).resolve().parents[2]
DEEPSPEED = _ROOT / "config" / "deepspeed"
TARGETS = frozenset(
    name
    for file in (_ROOT / "Snakefile", *(_ROOT / "workflow" / "rules").glob("*.smk"))
    for name in re.findall(r"^rule (\w+):", file.read_text(encoding="utf-8"), re.MULTILINE)
)
"""The workflow's own rules: `snakemake NAME` is one of these."""


def resolve(config: Config) -> Config:
    """A checked copy of ``config`` with every default filled in.

    Raises :class:`UserError` that lists every problem: unknown keys with the nearest right one, values of the wrong
    type, names that no node has.
    """
    problems = [*_unquoted(config)]
    found = jsonschema.Draft202012Validator(schema()).iter_errors(config)
    problems = problems or list(dict.fromkeys(describe(error) for error in found if not is_echo(error)))
    problems = problems or [*infinite(config, "")]
    if not problems:
        config = deepcopy(config)
        problems = [*fill_published(config), *_unsaid(config)]
    if not problems:
        fill_defaults(config, schema())
        config["results"] = _one_spelling(config["results"])
        problems = [*_no_folder(config["results"]), *_inconsistencies(config)]
    if not problems and config["sweeps"]:
        problems = [*expand(config)] or _inconsistencies(config)
    problems = problems or [*_unknown_choice(config)]
    if problems:
        lines = "\n  ".join(problems)
        raise UserError(f"the configuration has {len(problems)} problem(s):\n  {lines}", f"every key: {SCHEMA.name}")
    return config


def _one_spelling(folder: str) -> str:
    """A folder as it is called in every run: from the working directory if it lies below, or else from the root.

    Snakemake keeps what results were made with under their paths as written.
    """
    path = os.path.normpath(Path.cwd() / Path(folder).expanduser())
    return os.path.relpath(path) if Path(path).is_relative_to(Path.cwd()) else path


def _no_folder(results: str) -> Iterator[str]:
    if "{" in results or "}" in results:
        yield f"results: '{results}': braces are placeholders in the paths of rules; choose a name without"
    if results == os.curdir:
        yield "results: this is the working directory itself; name a folder in it, or another"
    if Path(results).exists() and not Path(results).is_dir():
        yield f"results: '{results}' is a file; name a folder"


def _inconsistencies(config: Config) -> list[str]:
    return [*_dangling(config), *_contradictions(config), *_machines(config)]


def _unquoted(config: Config) -> Iterator[str]:
    """Names that YAML takes for something else than text: ``on``, ``off``, ``yes``, ``no``, numbers."""
    for section, nodes in config.items():
        for name in nodes if isinstance(nodes, dict) else ():
            if not isinstance(name, str):
                yield f"{section}: YAML reads a name as {given(name)}; write it in quotes"


def _references(config: Config) -> Iterator[tuple[str, str, list[str]]]:
    """Every (place, name, sections that may hold it)."""
    for name, node in config["datasets"].items():
        if "source" in node:
            yield f"datasets.{name}.source", node["source"], ["sources"]
    for name, node in config["models"].items():
        for part in ("language", "vision", "checkpoint"):
            if "source" in node.get(part, {}):
                yield f"models.{name}.{part}.source", node[part]["source"], ["sources"]
    for name, node in config["finetunes"].items():
        if "source" in node.get("xtuner", {}):
            yield f"finetunes.{name}.xtuner.source", node["xtuner"]["source"], ["sources"]
    for name, node in config["pretrains"].items():
        yield f"pretrains.{name}.model", node["model"], ["models"]
        yield f"pretrains.{name}.dataset", node["dataset"], ["datasets"]
    for name, node in config["finetunes"].items():
        yield f"finetunes.{name}.init", node["init"], ["pretrains", "models"]
        for dataset in node["datasets"]:
            yield f"finetunes.{name}.datasets", dataset, ["datasets"]
    for name, node in config["evaluations"].items():
        yield f"evaluations.{name}.dataset", node["dataset"], ["datasets"]
    for name, node in config["experiments"].items():
        yield f"experiments.{name}.finetune", node["finetune"], ["finetunes"]
        for evaluation in node["evaluations"]:
            yield f"experiments.{name}.evaluations", evaluation, ["evaluations"]
    for name, node in config["sweeps"].items():
        yield f"sweeps.{name}.base", node["base"], ["experiments"]


def _dangling(config: Config) -> Iterator[str]:
    for place, name, sections in _references(config):
        known = [node for section in sections for node in config[section]]
        if name not in known:
            yield f"{place}: no '{name}' in {' or '.join(sections)}{nearest(name, known)}"


def _unknown_choice(config: Config) -> Iterator[str]:
    """The experiment or sweep of ``--config experiment=NAME``, which may be a variant."""
    known, chosen = [*config["experiments"], *config["sweeps"]], config["experiment"]
    if chosen not in (None, *known):
        sections = "experiments or sweeps" if config["sweeps"] else "experiments"
        yield f"experiment: no '{chosen}' in {sections}{nearest(chosen, known)}"


def _contradictions(config: Config) -> Iterator[str]:
    for section in ("experiments", "sweeps"):
        for name in (name for name in config[section] if name in TARGETS):
            yield f"{section}.{name}: this is the name of a target or another rule; choose another"
    for name in set(config["sweeps"]) & set(config["experiments"]):
        yield f"sweeps.{name}: an experiment has this name too, so that `snakemake {name}` is ambiguous; rename one"
    for name in set(config["pretrains"]) & set(config["models"]):
        yield f"pretrains.{name}: a model has this name too, so that `init: {name}` is ambiguous; rename one"
    for name, node in config["models"].items():
        parts = ("language", "vision") if node["family"] == "llava" and "checkpoint" not in node else ("checkpoint",)
        for part in (part for part in parts if part not in node):
            yield f"models.{name}: family {node['family']} needs the key '{part}'"
    for name, node in config["datasets"].items():
        if node["split"]["validation"] + node["split"]["test"] >= 1:
            yield f"datasets.{name}.split: validation and test leave nothing to train on"
    for name, node in config["finetunes"].items():
        model = _model_of(config, name)
        if node["convert"]["official"] and "checkpoint" not in config["models"][model]:
            yield f"finetunes.{name}.convert.official: the model '{model}' is assembled here and has no official layout"
        if "xtuner" in node and node["init"] not in config["models"]:
            yield f"finetunes.{name}.init: an XTuner checkpoint has a projector of its own; name the model under it"
        if "xtuner" in node and node["lora"]["variant"] != "lora":
            yield f"finetunes.{name}.lora.variant: XTuner trains plain LoRA"
    yield from _untrainable(config)
    yield from unanswerable(config)


def _untrainable(config: Config) -> Iterator[str]:
    """What learns, where that cannot be."""
    for section in ("pretrains", "finetunes"):
        for name, node in config[section].items():
            place = f"{section}.{name}"
            if (node["resources"]["deepspeed"] or "").startswith("zero3"):
                if node.get("calibrate"):
                    yield f"{place}.resources.deepspeed: `calibrate` needs the whole model on each GPU; use zero2"
                if node.get("method") == "qlora":
                    yield f"{place}.resources.deepspeed: zero3 cannot spread 4-bit weights; use zero2 or method: lora"
            if node.get("calibrate") and "projector" not in node["train"]:
                yield f"{place}.calibrate: changes the projector, which `train` does not name; set it to 0"
            if node.get("train_vision") and node["method"] != "full":
                yield f"{place}.train_vision: goes with method: full; lora.vision_rank puts adapters on the tower"


def _machines(config: Config) -> Iterator[str]:
    """Resources of training stages that no job could have."""
    stages = [(section, name, node) for section in ("pretrains", "finetunes") for name, node in config[section].items()]
    files = sorted(path.stem for path in DEEPSPEED.glob("*.json"))
    for section, name, node in stages:
        resources, place = node["resources"], f"{section}.{name}"
        file, card, gpus, nodes = (resources[key] for key in ("deepspeed", "gpu_model", "gpu", "nodes"))
        if file is not None and file not in files:
            yield f"{place}.resources.deepspeed: no {file}.json in config/deepspeed{nearest(file, files)}"
        if card is not None and card not in CARDS:
            yield f"{place}.resources.gpu_model: no '{card}' in the table of cards{nearest(card, list(CARDS))}"
        if gpus < nodes > 1 or gpus % nodes:
            yield f"{place}.resources.nodes: `gpu: {gpus}` cannot be spread evenly over {nodes} nodes"
        if gpus and node["batch_size"] % gpus:
            yield f"{place}.batch_size: {node['batch_size']} cannot be shared by {gpus} GPUs; choose a multiple of them"
    for section in ("models", "evaluations"):
        for name, node in config[section].items():
            if node["resources"]["nodes"] > 1:
                yield f"{section}.{name}.resources.nodes: only trainings run on several nodes"


def _unsaid(config: Config) -> Iterator[str]:
    """Keys that have a default, which would be a guess."""
    for name, node in config["finetunes"].items():
        if "xtuner" in node and node.get("method") != "full":
            for key in {"rank", "alpha"} - set(node.get("lora", {})):
                yield f"finetunes.{name}.lora.{key}: say what XTuner trained with (the LoraConfig of its configuration)"


def _model_of(config: Config, finetune: str) -> str:
    init: str = config["finetunes"][finetune]["init"]
    return config["pretrains"][init]["model"] if init in config["pretrains"] else init
