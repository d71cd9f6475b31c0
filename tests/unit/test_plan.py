"""Which keys a stage depends on, and which it does not."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from vlmflow.errors import UserError
from vlmflow.plan import Plan

ROOT = Path(__file__).parents[2]
DEMO = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())

OTHER_BASE = {"base": "original" if DEMO["finetunes"]["qlora"].get("merge") else "quantized"}
STAGES: dict[str, Callable[[Plan], str]] = {
    "source": lambda plan: plan.source_params("digits"),
    "data": lambda plan: plan.dataset_params("digit-questions"),
    "model": lambda plan: plan.model_params("smollm2-vit"),
    "tokens of the pretrain": lambda plan: plan.tokens_params("pretrain", "projector"),
    "tokens of the finetune": lambda plan: plan.tokens_params("finetune", "qlora"),
    "pretrain": lambda plan: plan.pretrain_params("projector"),
    "finetune": lambda plan: plan.finetune_params("qlora"),
    "merge": lambda plan: plan.merge_params("qlora"),
    "convert": lambda plan: plan.convert_params("qlora"),
    "evaluate": lambda plan: plan.evaluation_params("held-out"),
}


@pytest.mark.parametrize(
    ("edit", "stages"),
    [
        (("models", "smollm2-vit", "seed", 1), {"model"}),
        (("models", "smollm2-vit", "max_tiles", 3), set()),  # another family's key
        (("datasets", "digit-questions", "on_error", "drop"), {"data"}),
        (("datasets", "digit-questions", "repeat", 3), {"finetune"}),
        (("pretrains", "projector", "learning_rate", 0.5), {"pretrain"}),
        (("pretrains", "projector", "resources", {"micro_batch_size": 1}), set()),
        (("pretrains", "projector", "max_length", 99), {"tokens of the pretrain"}),
        (("finetunes", "qlora", "too_long", "drop"), {"tokens of the finetune"}),
        (("finetunes", "qlora", "seed", 5), {"finetune"}),
        (("finetunes", "qlora", "quantization", {"type": "fp4"}), {"finetune"}),
        (("finetunes", "qlora", "merge", OTHER_BASE), {"merge"}),
        (("finetunes", "qlora", "convert", {"dtype": "float16"}), {"convert"}),
        (("finetunes", "qlora", "resources", {"gpu": 4, "deepspeed": "zero2", "checkpoint_steps": 5}), set()),
        (("evaluations", "held-out", "max_new_tokens", 9), {"evaluate"}),
        (("evaluations", "held-out", "blind", False), set()),
        (("evaluations", "held-out", "resources", {"micro_batch_size": 1}), set()),
        (("experiments", "digits", "title", "Another"), set()),
    ],
)
def test_an_edit_reaches_exactly_its_stages(edit: tuple[str, str, str, Any], stages: set[str]) -> None:
    section, name, key, value = edit
    config = deepcopy(DEMO)
    config[section][name][key] = value
    before, after = Plan(DEMO), Plan(config)
    assert {stage for stage, params in STAGES.items() if params(before) != params(after)} == stages


def test_a_method_does_not_depend_on_the_keys_of_others() -> None:
    config = deepcopy(DEMO)
    config["finetunes"]["qlora"]["method"] = "lora"
    lora = Plan(config).finetune_params("qlora")
    config["finetunes"]["qlora"]["quantization"] = {"type": "fp4"}
    assert Plan(config).finetune_params("qlora") == lora


def test_checkpoints_of_an_experiment() -> None:
    plan = Plan(DEMO)
    assert plan.checkpoints("digits") == {
        "before": "model-smollm2-vit",
        "pretrained": "pretrain-projector",
        "after": "converted-qlora",
    }
    assert ("held-out", "converted-qlora+blind") in plan.runs("digits")


def test_a_finetune_may_start_from_a_model() -> None:
    config = deepcopy(DEMO)
    config["finetunes"]["qlora"]["init"] = "smollm2-vit"
    plan = Plan(config)
    assert plan.projector("qlora") == []
    assert plan.pretrains() == []
    assert list(plan.checkpoints("digits")) == ["before", "after"]
    assert plan.datasets() == ["digit-questions", "name-the-digit"]
    assert Plan({**config, "experiment": "digits"}).datasets() == ["digit-questions"]


def test_the_chosen_experiment_limits_the_targets() -> None:
    config = deepcopy(DEMO)
    config["finetunes"]["other"] = deepcopy(config["finetunes"]["qlora"])
    config["experiments"]["other"] = {"finetune": "other", "evaluations": ["held-out"]}
    assert Plan(config).finetunes() == ["other", "qlora"]
    assert Plan({**config, "experiment": "digits"}).finetunes() == ["qlora"]


def test_retries_ask_for_more_memory() -> None:
    plan = Plan(DEMO)
    assert [plan.memory("finetunes", "qlora", attempt) for attempt in (1, 2, 3)] == [8000, 12000, 16000]


def test_files_of_a_folder_of_ones_own_are_watched(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"1")
    config = deepcopy(DEMO)
    config["datasets"]["digit-questions"] = {"path": str(tmp_path), "annotations": "a.json"}
    before = Plan(config).files("digit-questions")
    assert Plan(config).files("digit-questions") == before
    (tmp_path / "a.png").write_bytes(b"22")
    assert Plan(config).files("digit-questions") != before


def test_a_stage_with_more_gpus_than_jobs_may_use_is_refused() -> None:
    config = deepcopy(DEMO)
    config["finetunes"]["qlora"]["resources"] = {"gpu": 2}
    Plan(config).check_gpus(2)
    with pytest.raises(UserError, match=r"jobs may use 1 GPU\(s\) at once, and finetunes.qlora asks for 2"):
        Plan(config).check_gpus(1)


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({}, {"nodes": 1, "gpu": 0}),
        ({"gpu": 4}, {"nodes": 1, "gpu": 4}),
        ({"gpu": 4, "nodes": 2}, {"nodes": 2, "mpi": "srun", "tasks": 2, "tasks_per_gpu": 0, "gres": "gpu:2"}),
    ],
)
def test_several_nodes_are_asked_for_per_node(resources: dict[str, int], expected: dict[str, Any]) -> None:
    config = deepcopy(DEMO)
    config["finetunes"]["qlora"]["resources"] = resources
    asked = Plan(config).over_nodes("finetunes", "qlora")
    assert asked.pop("slurm_extra") == "--signal=TERM@300 --open-mode=append"
    assert {key: value for key, value in asked.items() if value is not None} == expected


@pytest.mark.parametrize(
    ("section", "resources", "problem"),
    [
        ("finetunes", {"gpu": 3, "nodes": 2}, "finetunes.qlora.resources.nodes: `gpu: 3` cannot be spread evenly"),
        ("finetunes", {"nodes": 2}, "`gpu: 0` cannot be spread evenly over 2 nodes"),
        ("evaluations", {"gpu": 2, "nodes": 2}, "evaluations.held-out.resources.nodes: only trainings run on several"),
    ],
)
def test_impossible_nodes_are_refused(section: str, resources: dict[str, int], problem: str) -> None:
    config = deepcopy(DEMO)
    name = next(iter(config[section]))
    config[section][name]["resources"] = resources
    with pytest.raises(UserError, match=problem):
        Plan(config)


def test_a_whole_number_may_be_written_with_a_point() -> None:
    config = deepcopy(DEMO)
    config["finetunes"]["qlora"] |= {"weight_decay": 0, "lora": {"dropout": 0, "alpha": 32}}
    same = deepcopy(DEMO)
    same["finetunes"]["qlora"] |= {"weight_decay": 0.0, "lora": {"dropout": 0.0, "alpha": 32.0}}
    assert Plan(config).finetune_params("qlora") == Plan(same).finetune_params("qlora")
