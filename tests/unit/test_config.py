"""A configuration that is wrong says where, and what would be right."""

from __future__ import annotations

import dataclasses
import json
import math
from copy import deepcopy
from datetime import date
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from vlmflow.config import SCHEMA, resolve
from vlmflow.errors import UserError
from vlmflow.plan import Plan

ROOT = Path(__file__).parents[2]
CONFIGS = [ROOT / "config" / "config.yaml", *sorted((ROOT / "config" / "recipes").glob("*.yaml"))]
DEMO = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())


def edited(path: str, value: Any) -> dict[str, Any]:
    """The demo's configuration with the key at the dotted ``path`` set."""
    config = deepcopy(DEMO)
    *parents, last = path.split(".")
    node = config
    for key in parents:
        node = node.setdefault(key, {})
    node[last] = value
    return config


def test_the_schema_is_a_schema_and_describes_every_key() -> None:
    schema = yaml.safe_load(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)

    def undescribed(node: Any, path: str) -> list[str]:
        if not isinstance(node, dict):
            return []
        found = [
            f"{path}.{name}"
            for name, child in node.get("properties", {}).items()
            if "description" not in child and "$ref" not in child and "default" not in child
        ]
        return found + [item for key, child in node.items() for item in undescribed(child, f"{path}.{key}")]

    assert undescribed(schema, "") == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_resolve_and_resolving_again_changes_nothing(path: Path) -> None:
    resolved = resolve(yaml.safe_load(path.read_text()))
    assert resolve(resolved) == resolved


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_have_a_header_that_says_how_to_run_them(path: Path) -> None:
    head = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert "yaml-language-server" in head
    assert "Needs" in head
    assert "Run" in head


XTUNER = {"epochs": 1, "betas": [0.9, 0.999], "warmup_ratio": 0.03, "schedule": "cosine", "max_grad_norm": 1}
LLAVA = {**XTUNER, "weight_decay": 0, "max_length": 1472 + 576}
INTERNVL = {**XTUNER, "weight_decay": 0.05, "max_length": 8192, "batch_size": 8 * 8 * 2, "learning_rate": 1e-6,
            "train_projector": True, "train_vision": False}  # fmt: skip
INTERNVL_LORA = {"rank": 128, "alpha": 256, "dropout": 0.05, "variant": "lora", "vision_rank": 0}
PUBLISHED: dict[tuple[str, str, str], dict[str, Any]] = {
    ("llava_internlm2_1.8b", "pretrains", "projector"): {
        **LLAVA, "batch_size": 32 * 8, "learning_rate": 1e-3, "train": ["projector"], "calibrate": 0,
    },
    ("llava_internlm2_1.8b", "finetunes", "qlora"): {
        **LLAVA, "batch_size": 16 * 8, "learning_rate": 2e-4, "method": "qlora", "train_projector": True,
        "lora": {"rank": 512, "alpha": 256, "dropout": 0.05, "variant": "lora", "vision_rank": 64, "vision_alpha": 16},
        "quantization": {"type": "nf4", "double": True}, "projector_learning_rate": None,
    },
    ("internvl2_2b", "finetunes", "qlora"): {
        **INTERNVL, "method": "qlora", "lora": {**INTERNVL_LORA, "vision_alpha": 16},
        "quantization": {"type": "nf4", "double": True},
    },
    ("internvl2_2b", "finetunes", "lora"): {
        **INTERNVL, "method": "lora", "lora": {**INTERNVL_LORA, "vision_alpha": 16},
    },
    ("internvl2_2b", "finetunes", "full"): {**INTERNVL, "method": "full"},
}  # fmt: skip
"""Recipe, section, node -> what XTuner 0.1.23's configuration of the same name says."""


@pytest.mark.parametrize(("place", "published"), PUBLISHED.items(), ids=lambda part: "-".join(part))
def test_recipes_train_as_published(place: tuple[str, str, str], published: dict[str, Any]) -> None:
    recipe, section, name = place
    resolved = resolve(yaml.safe_load((ROOT / "config" / "recipes" / f"{recipe}.yaml").read_text()))
    node = resolved[section][name]
    assert {key: node[key] for key in published} == published


def test_defaults_reach_nested_keys_and_leave_the_input_alone() -> None:
    config = deepcopy(DEMO)
    resolved = resolve(config)
    assert config == DEMO
    assert resolved["datasets"]["digit-questions"]["split"] == {"validation": 0.1, "test": 0.1, "seed": 0}
    assert resolved["finetunes"]["qlora"]["lora"]["vision_rank"] == 0
    assert resolved["finetunes"]["qlora"]["weight_decay"] == 0
    assert resolved["finetunes"]["qlora"]["max_grad_norm"] == 1.0


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("finetunez", {}, "no key 'finetunez' here; did you mean 'finetunes'?"),
        (
            "finetunes.qlora.lerning_rate",
            1,
            "finetunes.qlora: no key 'lerning_rate' here; did you mean 'learning_rate'?",
        ),
        ("finetunes.qlora.lora.rnk", 1, "finetunes.qlora.lora: no key 'rnk' here; did you mean 'rank'?"),
        ("finetunes.qlora.resources.gpus", 1, "no key 'gpus' here; did you mean 'gpu'?"),
        ("datasets.digit-questions.anotations", "x", "did you mean 'annotations'?"),
        ("finetunes.qlora.method", "qlorra", "finetunes.qlora.method: 'qlorra' is not one of"),
        ("finetunes.qlora.batch_size", "8", "finetunes.qlora.batch_size: '8' is text, not a whole number"),
        ("finetunes.qlora.init", "projektor", "no 'projektor' in pretrains or models; did you mean 'projector'?"),
        ("finetunes.qlora.datasets", ["nothing"], "no 'nothing' in datasets"),
        ("finetunes.qlora.datasets", {"nothing": 1}, "finetunes.qlora.datasets: no 'nothing' in datasets"),
        ("finetunes.qlora.datasets", {}, "finetunes.qlora.datasets: {} should be non-empty"),
        ("finetunes.qlora.datasets", "digit-questions", "'digit-questions' is text, not a list or a mapping"),
        ("finetunes.qlora.datasets", {"digit-questions": 0}, "datasets.digit-questions: 0 is less than or equal to"),
        ("finetunes.qlora.datasets", {"digit-questions": -1}, "datasets.digit-questions: -1 is less than or equal to"),
        ("finetunes.qlora.datasets", {"digit-questions": "1"}, "datasets.digit-questions: '1' is text, not a number"),
        ("finetunes.qlora.datasets", {"digit-questions": None}, "datasets.digit-questions: null is not a number"),
        (
            "finetunes.qlora.datasets",
            {"digit-questions": math.nan},
            "datasets.digit-questions: nan is no finite number",
        ),
        (
            "finetunes.qlora.datasets",
            {"digit-questions": math.inf},
            "datasets.digit-questions: inf is no finite number",
        ),
        ("datasets.digit-questions.repeat", 0, "datasets.digit-questions.repeat: 0 is less than or equal to"),
        ("datasets.digit-questions.repeat", "3", "datasets.digit-questions.repeat: '3' is text, not a number"),
        ("datasets.digit-questions.repeat", math.inf, "datasets.digit-questions.repeat: inf is no finite number"),
        ("experiments.digits.evaluations", ["heldout"], "did you mean 'held-out'?"),
        ("experiment", "digts", "experiment: no 'digts' in experiments; did you mean 'digits'?"),
        ("experiments.report", {"finetune": "qlora", "evaluations": ["held-out"]}, "name of a target"),
        ("experiments.fetch_source", DEMO["experiments"]["digits"], "experiments.fetch_source: this is the name of a"),
        ("experiments.all", DEMO["experiments"]["digits"], "experiments.all: this is the name of a target"),
        ("finetunes.qlora.learning_rate", math.nan, "finetunes.qlora.learning_rate: nan is no finite number"),
        ("finetunes.qlora.betas", [0.9, -math.inf], "finetunes.qlora.betas.1: -inf is no finite number"),
        ("finetunes.qlora.learning_rate", date(2026, 1, 1), "learning_rate: 2026-01-01 (a date) is not a number"),
        ("finetunes.qlora.learning_rate", True, "learning_rate: true (for YAML also yes, on) is not a number"),
        ("sources.mnist", {"pypi": "mnist"}, "'mnist' is none of what it may be: Files inside a Python package, as NA"),
        (
            "experiments." + "x" * 101,
            DEMO["experiments"]["digits"],
            "letters, digits, '_' and '-', 100 of them at most",
        ),
        ("models.projector", DEMO["models"]["smollm2-vit"], "ambiguous"),
        ("models.x y", DEMO["models"]["smollm2-vit"], "letters, digits"),
        ("models.smollm2-vit.language", {}, "exactly one of source, path"),
        ("sources.digits.url", "https://example.org/x", "exactly one of hub, modelscope, url, pypi, package, path"),
        ("datasets.digit-questions.split", {"validation": 0.5, "test": 0.5}, "leave nothing to train on"),
        ("pretrains.projector.train", [], "pretrains.projector.train: [] should be non-empty"),
        ("pretrains.projector.train", ["projector", "tower"], "'tower' is not one of projector, vision, language"),
        ("pretrains.projector.train", ["vision"], "pretrains.projector.calibrate: changes the projector, which `tr"),
        ("pretrains.projector.resources", {"deepspeed": "zero3"}, "`calibrate` needs the whole model on each GPU"),
        ("finetunes.qlora.resources", {"deepspeed": "zero3"}, "zero3 cannot spread 4-bit weights; use zero2 or m"),
        ("finetunes.qlora.resources", {"deepspeed": "zero3_offload"}, "zero3 cannot spread 4-bit weights"),
        ("finetunes.qlora.train_vision", True, "finetunes.qlora.train_vision: goes with method: full; lora.vision_ra"),
    ],
)
def test_what_is_wrong_is_said(path: str, value: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        resolve(edited(path, value))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("datasets", "repeat", "mix"),
    [
        (["digit-questions"], 1, {"repeat": [1], "weights": None}),
        (["digit-questions", "name-the-digit"], 3.5, {"repeat": [3.5, 1], "weights": None}),
        ({"digit-questions": 3, "name-the-digit": 0.5}, 0.25, {"repeat": [0.25, 1], "weights": [3, 0.5]}),
    ],
)
def test_data_sets_are_a_list_or_have_weights(datasets: Any, repeat: float, mix: dict[str, Any]) -> None:
    config = edited("finetunes.qlora.datasets", datasets)
    config["datasets"]["digit-questions"]["repeat"] = repeat
    plan = Plan(config)
    assert json.loads(plan.finetune_params("qlora")).items() >= mix.items()
    assert plan.training_data("finetune", "qlora") == [f"results/data/{name}/manifest.json" for name in datasets]
    assert set(plan.datasets()) == {"digit-questions", "name-the-digit"}
    assert json.loads(plan.pretrain_params("projector")).items() >= {"repeat": [1], "weights": None}.items()


def test_a_whole_number_with_a_point_is_the_same_parameter() -> None:
    whole, point = edited("finetunes.qlora.datasets", {"digit-questions": 1}), deepcopy(DEMO)
    point["finetunes"]["qlora"]["datasets"] = {"digit-questions": 1.0}
    point["datasets"]["digit-questions"]["repeat"] = 1.0
    assert Plan(whole).finetune_params("qlora") == Plan(point).finetune_params("qlora")
    assert '"repeat": [1]' in Plan(point).finetune_params("qlora")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("pretrains.projector.train", ["projector", "vision", "language"]),
        ("finetunes.qlora", {**DEMO["finetunes"]["qlora"], "method": "full", "train_vision": True}),
        ("finetunes.qlora", {**DEMO["finetunes"]["qlora"], "method": "lora", "resources": {"deepspeed": "zero3"}}),
    ],
)
def test_what_learns_is_chosen(path: str, value: Any) -> None:
    resolve(edited(path, value))


def test_all_problems_are_reported_at_once() -> None:
    config = edited("finetunes.qlora.lerning_rate", 1)
    config["evaluations"]["held-out"]["splitt"] = "test"
    with pytest.raises(UserError, match=r"2 problem"):
        resolve(config)


def test_training_options_are_the_keys_of_the_schema() -> None:
    """What the scripts parse is what the schema documents."""
    from vlmflow.training.options import Execution, FinetuneOptions, PretrainOptions, TrainingOptions

    definitions = yaml.safe_load(SCHEMA.read_text())["$defs"]

    def fields(options: type) -> set[str]:
        return {field.name for field in dataclasses.fields(options)}

    counted = {"max_length", "too_long", "max_dropped"}  # by the stage before
    assert fields(TrainingOptions) - {"repeat", "weights"} == set(definitions["training"]["properties"]) - counted
    own = {"model", "dataset", "learning_rate", "resources"}
    assert fields(PretrainOptions) - fields(TrainingOptions) == set(definitions["pretrain"]["properties"]) - own
    own = {"init", "datasets", "learning_rate", "merge", "convert", "resources", "xtuner"}
    assert fields(FinetuneOptions) - fields(TrainingOptions) == set(definitions["finetune"]["properties"]) - own
    others = {"gpu", "gpu_model", "nodes", "cpus", "mem_mb", "runtime"}  # the cluster's and the plan's
    assert fields(Execution) == set(definitions["resources"]["properties"]) - others


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("gradient_checkpointing", "on", "gradient_checkpointing: 'on' is none of what it may be"),
        ("gradient_checkpointing", -1, "gradient_checkpointing: -1 is none of what it may be"),
        ("deepspeed", "zero5", r"no zero5\.json in config/deepspeed"),
        ("gpu_model", "H300", "no 'H300' in the table of cards"),
        ("gpu", 3, "batch_size: 16 cannot be shared by 3 GPUs"),
    ],
)
def test_resources_that_no_job_could_have_are_told_before_it_runs(key: str, value: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        resolve(edited("pretrains.projector.resources", {key: value}))


@pytest.mark.parametrize(
    ("written", "called"),
    [
        ("results/tiny", "results/tiny"),
        ("./results//tiny/", "results/tiny"),
        ("{here}/results/../results/tiny", "results/tiny"),
        ("../beside", "{above}/beside"),
        ("~/results", "{home}/results"),
    ],
)
def test_one_folder_has_one_name(written: str, called: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"here": tmp_path, "above": tmp_path.parent, "home": Path.home()}
    assert resolve(edited("results", written.format(**places)))["results"] == called.format(**places)


@pytest.mark.parametrize(
    ("results", "told"),
    [
        ("notes", "results: 'notes' is a file"),
        ("re{name}s", "braces are placeholders"),
        (".", "directory itself"),
    ],
)
def test_results_that_are_no_folder(results: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").touch()
    with pytest.raises(UserError, match=told):
        resolve(edited("results", results))


def test_a_name_that_yaml_takes_for_something_else_is_told() -> None:
    with pytest.raises(UserError, match="finetunes: YAML reads a name as false"):
        resolve({**DEMO, "finetunes": {**DEMO["finetunes"], **yaml.safe_load("off: {init: projector}")}})
