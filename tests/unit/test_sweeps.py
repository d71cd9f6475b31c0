"""Variants become nodes: shared wherever their values do not tell them apart, named by what does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from swept import DEMO, added, grid, swept, told
from vlmflow.config import resolve
from vlmflow.plan import Plan
from vlmflow.plan.values import TOKENS
from vlmflow.sweeps import _DATA, effective

ROOT = Path(__file__).parents[2]


def test_a_grid_is_all_combinations_and_the_base_is_one_of_them() -> None:
    config = grid(learning_rate=[0.001, 0.002], lora__rank=[16, 8])
    names = ["lora_rank-8", "learning_rate-2e-3", "learning_rate-2e-3--lora_rank-8"]
    assert added(config, "finetunes") == [f"qlora-{name}" for name in names]
    assert added(config, "experiments") == [f"rates-{name}" for name in names]
    assert added(config, "pretrains") == added(config, "models") == []
    node = resolve(config)["finetunes"]["qlora-learning_rate-2e-3--lora_rank-8"]
    original = resolve(DEMO)["finetunes"]["qlora"]
    assert node == {**original, "learning_rate": 0.002, "lora": {**original["lora"], "rank": 8}}
    assert Plan(config).variants("rates") == ["digits", *(f"rates-{name}" for name in names)]


def test_a_pretrain_per_distinct_set_of_its_values() -> None:
    config = grid(pretrain__learning_rate=[0.003, 0.001], seed=[0, 1, 2])
    assert added(config, "pretrains") == ["projector-learning_rate-1e-3"]
    assert len(added(config, "finetunes")) == 5
    nodes = resolve(config)["finetunes"]
    assert nodes["qlora-seed-1"]["init"] == "projector"
    assert nodes["qlora-pretrain_learning_rate-1e-3"]["init"] == "projector-learning_rate-1e-3"
    assert nodes["qlora-seed-1--pretrain_learning_rate-1e-3"]["init"] == "projector-learning_rate-1e-3"


def test_a_key_of_the_model_has_a_model_and_what_follows() -> None:
    config = grid(model__image_size=[42, 56], seed=[0, 1])
    resolved = resolve(config)
    assert added(config, "models") == ["smollm2-vit-image_size-56"]
    assert added(config, "pretrains") == ["projector-model_image_size-56"]
    assert resolved["pretrains"]["projector-model_image_size-56"]["model"] == "smollm2-vit-image_size-56"
    assert Plan(config).model_of("qlora-seed-1--model_image_size-56") == "smollm2-vit-image_size-56"


def test_another_model_or_start_is_a_value_like_others() -> None:
    other = {"models": {"other": DEMO["models"]["smollm2-vit"]}}
    config = swept({"variants": [{"pretrain.model": "other"}, {"finetune.init": "other"}]}, **other)
    nodes = resolve(config)["finetunes"]
    assert nodes["qlora-pretrain_model-other"]["init"] == "projector-model-other"
    assert nodes["qlora-init-other"]["init"] == "other"


def test_names_do_not_depend_on_what_else_is_varied_or_on_the_order() -> None:
    few = added(grid(learning_rate=[0.002]), "finetunes")
    assert few == ["qlora-learning_rate-2e-3"]
    assert set(few) < set(added(grid(lora__rank=[8, 16], learning_rate=[0.01, 0.002, 0.001]), "finetunes"))
    assert set(added(grid(seed=[1], lora__rank=[8]), "finetunes")) == set(
        added(grid(lora__rank=[8], seed=[1]), "finetunes")
    )


def test_sweeps_over_one_base_share_nodes() -> None:
    config = grid(learning_rate=[0.002, 0.003])
    config["sweeps"]["more"] = {"base": "digits", "variants": [{"name": "low", "finetune.learning_rate": "2e-3"}]}
    assert added(config, "finetunes") == ["qlora-learning_rate-2e-3", "qlora-learning_rate-3e-3"]
    assert resolve(config)["experiments"]["more-low"]["finetune"] == "qlora-learning_rate-2e-3"


def test_a_default_that_is_spelled_out_is_no_difference() -> None:
    assert added(grid(weight_decay=[0, 0.0, "0"][:1], lora__vision_rank=[0]), "finetunes") == []


def test_a_named_variant_is_an_experiment_of_its_own_even_if_it_is_the_base() -> None:
    config = swept({"variants": [{"name": "as-it-is"}, {"name": "slow", "finetune.learning_rate": 0.0005}]})
    experiments = resolve(config)["experiments"]
    assert experiments["rates-as-it-is"]["finetune"] == "qlora"
    assert experiments["rates-slow"]["finetune"] == "qlora-learning_rate-5e-4"
    assert experiments["rates-slow"]["title"] == f"{DEMO['experiments']['digits']['title']}: learning_rate 5e-4"


@pytest.mark.parametrize("value", ["1e-4", 1e-4, "0.0001"])
def test_numbers_that_yaml_reads_as_text_are_numbers(value: Any) -> None:
    assert resolve(grid(learning_rate=[value]))["finetunes"]["qlora-learning_rate-1e-4"]["learning_rate"] == 0.0001


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (("weight_decay", 0.15), "weight_decay-15e-2"),
        (("epochs", 3), "epochs-3"),
        (("epochs", 3.0), "epochs-3"),
        (("train_projector", False), "train_projector-false"),
        (("projector_learning_rate", "2e-5"), "projector_learning_rate-2e-5"),
        (("datasets", ["name-the-digit", "digit-questions"]), "datasets-name-the-digit-digit-questions"),
        (("datasets", {"name-the-digit": "1", "digit-questions": 2.5}),
         "datasets-name-the-digit-1-digit-questions-25e-1"),
    ],
)  # fmt: skip
def test_names_are_made_of_values(value: tuple[str, Any], name: str) -> None:
    assert added(grid(**{value[0]: [value[1]]}), "finetunes") == [f"qlora-{name}"]


def test_weights_of_a_mix_are_keys() -> None:
    config = grid(datasets__a=[2, 3])
    config["datasets"]["a"] = config["datasets"]["digit-questions"]
    assert "finetune.datasets.a: datasets is a list in the base; write it as NAME: WEIGHT there" in told(config)
    config["finetunes"]["qlora"]["datasets"] = {"digit-questions": 1, "a": 2}
    assert added(config, "finetunes") == ["qlora-datasets_a-3"]


def test_a_long_name_ends_in_a_hash() -> None:
    values = {f"lora__{key}": [0.123] for key in ("alpha", "dropout", "vision_alpha")}
    [name] = added(grid(**values, weight_decay=[0.123], learning_rate=[0.123]), "finetunes")
    [other] = added(grid(**values, weight_decay=[0.123], learning_rate=[0.123], seed=[1]), "finetunes")
    assert name.startswith("qlora-learning_rate-123e-3--lora_alpha-123e-3")
    assert len(name) <= len("qlora-") + 60
    assert name != other


def test_resolving_again_changes_nothing() -> None:
    resolved = resolve(grid(learning_rate=[0.001, "2e-3"], pretrain__seed=[0, 1]))
    assert resolve(resolved) == resolved


@pytest.mark.parametrize(
    ("key", "value"),
    [("finetune.resources.cpus", 4), ("finetune.merge.keep", False), ("finetune.convert.official", True)],
)
def test_what_changes_no_score_makes_no_variant(key: str, value: Any) -> None:
    assert f"only {key} differs from the base, which changes no score" in told(swept({"grid": {key: [value]}}))


def test_what_changes_no_score_may_go_with_a_variant() -> None:
    config = swept({"variants": [{"finetune.seed": 1, "finetune.resources.cpus": 4, "finetune.merge.keep": False}]})
    node = resolve(config)["finetunes"]["qlora-seed-1"]
    assert (node["resources"]["cpus"], node["merge"]["keep"]) == (4, False)
    assert json.loads(Plan(config).table_params("rates"))["keys"] == ["finetune.seed"]


def test_a_grid_of_methods_has_no_variants_that_the_method_makes_the_same() -> None:
    config = grid(method=["full", "lora"], lora__rank=[4, 8])
    names = ["rates-method-full", "rates-lora_rank-4--method-lora", "rates-lora_rank-8--method-lora"]
    resolved = resolve(config)
    assert Plan(config).variants("rates") == names
    assert [effective(resolved, name, "finetune.lora.rank") for name in names] == [None, 4, 8]
    assert resolve(resolved) == resolved


def test_a_variant_or_a_whole_sweep_can_be_chosen() -> None:
    config = grid(seed=[0, 1, 2])
    assert Plan({**config, "experiment": "rates-seed-1"}).experiments() == ["rates-seed-1"]
    assert Plan({**config, "experiment": "rates"}).finetunes() == ["qlora", "qlora-seed-1", "qlora-seed-2"]
    assert "experiment: no 'rates-seed-3' in experiments or sweeps" in told({**config, "experiment": "rates-seed-3"})


def test_the_examples_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8")
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "drawn.tsv").write_text("name\tfinetune.lora.rank\nfirst\t32\n\t64\n")
    monkeypatch.chdir(tmp_path)
    config = {**DEMO, "sweeps": {name: sweep for block in blocks for name, sweep in block["sweeps"].items()}}
    assert set(added(config, "experiments")) == {
        "rates-lora_rank-64", "rates-learning_rate-2e-3", "rates-learning_rate-2e-3--lora_rank-64", "methods-quick",
        "methods-thorough", "methods-method-lora", "drawn-first", "drawn-lora_rank-64",
    }  # fmt: skip


def test_what_is_made_of_data_alone_is_made_once() -> None:
    config = grid(seed=[0, 1, 2], datasets=[["digit-questions"], ["name-the-digit"]], pretrain__seed=[0, 1])
    plan = Plan(config)
    other = "qlora-datasets-name-the-digit"
    assert {plan.tokens("finetune", name) for name in plan.finetunes()} == {
        "results/tokens/finetune-qlora/manifest.json", f"results/tokens/finetune-{other}/manifest.json"
    }  # fmt: skip
    assert {plan.tokens("pretrain", name) for name in plan.pretrains()} == {
        "results/tokens/pretrain-projector/manifest.json"
    }
    assert plan.leakage_gate("qlora-seed-1--pretrain_seed-1") == "results/leakage/qlora.passed"
    assert "held-out" in plan.leakage_evaluations(other)
    baselines = "results/evaluate/held-out/baselines-qlora.json"
    assert baselines in plan.comparison_inputs("rates-seed-2") and baselines in plan.comparison_inputs("digits")


def test_the_node_that_stands_for_shared_data_need_be_no_variant() -> None:
    plan = Plan(grid(seed=[1, 2], max_length=[99]))
    assert (
        plan.tokens("finetune", "qlora-max_length-99--seed-1")
        == "results/tokens/finetune-qlora-max_length-99/manifest.json"
    )
    assert json.loads(plan.tokens_params("finetune", "qlora-max_length-99"))["max_length"] == 99
    assert "qlora-max_length-99" not in plan.finetunes()


def test_every_key_that_tokens_are_counted_by_tells_data_apart() -> None:
    assert {f"{stage}.{key}" for stage in ("pretrain", "finetune") for key in TOKENS} < _DATA


def test_what_tables_are_told_is_in_files_that_later_plans_leave_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan, later = Plan(grid(seed=[0, 1])), Plan(grid(seed=[0, 1, 2]))
    files = [plan.table_file("rates"), later.table_file("rates")]
    assert [Path(file).read_text() for file in files] == [plan.table_params("rates"), later.table_params("rates")]
    assert Path(later.results_file()).read_text() == later.results_params()
