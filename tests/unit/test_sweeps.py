"""Variants become nodes: shared wherever their values do not tell them apart, named by what does."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from vlmflow.config import resolve
from vlmflow.errors import UserError
from vlmflow.plan import Plan
from vlmflow.plan.values import TOKENS
from vlmflow.sweeps import _DATA

ROOT = Path(__file__).parents[2]
DEMO = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())


def swept(sweep: dict[str, Any], **sections: dict[str, Any]) -> dict[str, Any]:
    """The demo's configuration with a sweep called ``rates`` and more nodes."""
    config = deepcopy(DEMO)
    for section, nodes in sections.items():
        config.setdefault(section, {}).update(nodes)
    config["sweeps"] = {"rates": {"base": "digits", **sweep}}
    return config


def grid(**values: list[Any]) -> dict[str, Any]:
    """The demo with a grid; ``lora__rank`` is ``finetune.lora.rank``, ``pretrain__seed`` is ``pretrain.seed``."""
    keys = [key.replace("__", ".") for key in values]
    keys = [key if key.split(".")[0] in ("pretrain", "model") else f"finetune.{key}" for key in keys]
    return swept({"grid": dict(zip(keys, values.values(), strict=True))})


def added(config: dict[str, Any], section: str) -> list[str]:
    """Names of the nodes that a sweep added."""
    return [name for name in resolve(config)[section] if name not in config[section]]


def told(config: dict[str, Any]) -> str:
    with pytest.raises(UserError) as error:
        resolve(config)
    return str(error.value)


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


def test_resources_may_go_with_a_variant_and_never_make_one() -> None:
    config = swept({"variants": [{"finetune.seed": 1, "finetune.resources.cpus": 4}]})
    assert resolve(config)["finetunes"]["qlora-seed-1"]["resources"]["cpus"] == 4
    assert "only finetune.resources differ from the base" in told(swept({"grid": {"finetune.resources.cpus": [4]}}))


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({"grid": {"finetune.lerning_rate": [1]}},
         "sweeps.rates.grid: finetune: no key 'lerning_rate' here; did you mean 'learning_rate'?"),
        ({"grid": {"finetune.lora.rnk": [1]}}, "finetune.lora: no key 'rnk' here; did you mean 'rank'?"),
        ({"grid": {"learning_rate": [1]}},
         "no key 'learning_rate' here; there is finetune., model., pretrain.; write STAGE.KEY"),
        ({"grid": {"finetune.lora": [{"rank": 1}]}}, "'finetune.lora': name the keys in it, as in finetune.lora.alpha"),
        ({"grid": {"finetune": [1]}}, "'finetune': name the keys in it"),
        ({"grid": {"evaluation.split": ["test"]}}, "all variants are asked the same questions"),
        ({"grid": {"model.family": ["internvl"]}}, "vary pretrain.model, or finetune.init, by its name"),
        ({"grid": {"finetune.lora.rank": [8, "x", 1.5]}},
         "finetune.lora.rank: 'x' is not of type 'integer'\n  sweeps.rates.grid: finetune.lora.rank: 1.5 is not"),
        ({"grid": {"finetune.learning_rate": [0]}}, "finetune.learning_rate: 0 is less than or equal to the minimum"),
        ({"grid": {"finetune.init": ["projektor"]}}, "finetune.init: no 'projektor'; did you mean 'projector'?"),
        ({"grid": {"pretrain.model": ["smollm-vit"]}}, "pretrain.model: no 'smollm-vit'; did you mean 'smollm2-vit'?"),
        ({"grid": {"finetune.datasets": [["digits"]]}},
         "finetunes.qlora-datasets-digits.datasets: no 'digits' in datasets"),
        ({"grid": {"finetune.seed": [1, "1"]}},
         "sweeps.rates.grid: seed 1: the same variant or name as in sweeps.rates.grid"),
        ({"grid": {}}, "sweeps.rates.grid: {} should be non-empty"),
        ({"grid": {"finetune.seed": []}}, "sweeps.rates.grid.finetune.seed: [] should be non-empty"),
        ({"variants": []}, "sweeps.rates.variants: [] should be non-empty"),
        ({}, "sweeps.rates: give exactly one of grid, variants, table"),
        ({"grid": {"finetune.seed": [1]}, "table": "a.csv"}, "sweeps.rates: "),
        ({"variants": [{"finetune.seed": 1}, {}, {"finetune.seed": 0}]},
         "variants, number 3: the base: the same variant or name as in sweeps.rates.variants, number 2"),
        ({"variants": [{"name": "a", "finetune.seed": 1}, {"name": "a"}]},
         "variants, number 2: a: the same variant or name"),
        ({"variants": [{"name": "a b"}]}, "variants, number 1: name: 'a b': a name is made of letters"),
        ({"base": "digts", "grid": {"finetune.seed": [1]}},
         "sweeps.rates.base: no 'digts' in experiments; did you mean 'digits'?"),
        ({"bse": 1, "grid": {"finetune.seed": [1]}}, "sweeps.rates: no key 'bse' here; did you mean 'base'?"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told(sweep: dict[str, Any], message: str) -> None:
    assert message in told(swept(sweep))


def test_a_variant_without_a_pretrain_cannot_change_it() -> None:
    config = swept({"variants": [{"finetune.init": "smollm2-vit", "pretrain.seed": 1}]})
    assert "variants, number 1: pretrain.seed: no pretrain 'smollm2-vit'" in told(config)


def test_a_name_that_is_taken_by_something_else_is_told() -> None:
    config = grid(seed=[1])
    config["finetunes"]["qlora-seed-1"] = {"init": "projector", "datasets": ["name-the-digit"]}
    assert "finetunes.qlora-seed-1 is there already, and is another one" in told(config)


@pytest.mark.parametrize(("name", "message"), [("results", "name of a target rule"), ("digits", "an experiment has")])
def test_a_sweep_has_a_name_of_its_own(name: str, message: str) -> None:
    config = grid(seed=[1])
    config["sweeps"] = {name: config["sweeps"]["rates"]}
    assert message in told(config)


def test_a_variant_or_a_whole_sweep_can_be_chosen() -> None:
    config = grid(seed=[0, 1, 2])
    assert Plan({**config, "experiment": "rates-seed-1"}).experiments() == ["rates-seed-1"]
    assert Plan({**config, "experiment": "rates"}).finetunes() == ["qlora", "qlora-seed-1", "qlora-seed-2"]
    assert "experiment: no 'rates-seed-3' in experiments or sweeps" in told({**config, "experiment": "rates-seed-3"})


def table(folder: Path, text: str, name: str = "variants.tsv") -> dict[str, Any]:
    (folder / name).write_text(text, encoding="utf-8")
    return swept({"table": str(folder / name)})


def test_a_table_has_a_variant_per_line(tmp_path: Path) -> None:
    text = "name\tfinetune.learning_rate\tfinetune.datasets\tfinetune.train_projector\n"
    text += "\t1e-4\t\t\n\nmixed\t\t{name-the-digit: 1, digit-questions: 3}\tfalse\n"
    config = table(tmp_path, "\ufeff" + text)
    assert added(config, "experiments") == ["rates-learning_rate-1e-4", "rates-mixed"]
    resolved = resolve(config)
    node = resolved["finetunes"][resolved["experiments"]["rates-mixed"]["finetune"]]
    assert node["datasets"] == {"name-the-digit": 1, "digit-questions": 3}
    assert node["train_projector"] is False


def test_a_table_may_be_comma_separated(tmp_path: Path) -> None:
    config = table(tmp_path, 'finetune.datasets,finetune.seed\n"[name-the-digit, digit-questions]",1\n', "variants.csv")
    assert "qlora-datasets-name-the-digit-digit-questions--seed-1" in added(config, "finetunes")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("finetune.seed\n1\nx\n", "variants.tsv, line 3: finetune.seed: 'x' is not of type 'integer'"),
        ("finetune.sed\n1\n2\n", "sweeps.rates.table: variants.tsv: finetune: no key 'sed' here; did you mean 'seed'?"),
        ("finetune.seed\tname\n1\n", "variants.tsv: line 2 has 1 cells, the first line 2"),
        ("finetune.seed\n", "variants.tsv: no variants"),
        ("", "variants.tsv: no variants"),
        ("finetune.seed\tfinetune.seed\n1\t2\n", "variants.tsv: a column of the first line has no name, or two have"),
        ("finetune.seed\tname\n1\ta b\n", "variants.tsv, line 2: name: 'a b'"),
        ("finetune.seed\n1\n1\n", "variants.tsv, line 3: seed 1: the same variant or name as"),
    ],
)
def test_a_wrong_table_is_told_with_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    assert message in told(table(tmp_path, text)).replace(f"{tmp_path}/", "")


def test_a_wrong_value_of_a_grid_is_told_once() -> None:
    assert "1 problem" in told(grid(seed=["x"], lora__rank=[8, 16]))


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


def test_a_table_that_is_not_there_is_told() -> None:
    assert "sweeps.rates.table: nowhere.tsv: no such file" in told(swept({"table": "nowhere.tsv"}))
    assert "sweeps.rates.table: 'table.xlsx' does not match" in told(swept({"table": "table.xlsx"}))


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
