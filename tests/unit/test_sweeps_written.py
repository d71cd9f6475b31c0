"""Sweeps as they are written down: tables of variants, and what is wrong told with its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from swept import added, grid, swept, told
from vlmflow.config import resolve


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
         "finetune.lora.rank: 'x' is text, not a whole number\n  sweeps.rates.grid: finetune.lora.rank: 1.5 is not"),
        ({"grid": {"finetune.learning_rate": [0]}}, "finetune.learning_rate: 0 is less than or equal to the minimum"),
        ({"grid": {"finetune.init": ["projektor"]}}, "finetune.init: no 'projektor'; did you mean 'projector'?"),
        ({"grid": {"pretrain.model": ["smollm-vit"]}}, "pretrain.model: no 'smollm-vit'; did you mean 'smollm2-vit'?"),
        ({"grid": {"finetune.datasets": [["digits"]]}},
         "finetunes.qlora-datasets-digits.datasets: no 'digits' in datasets"),
        ({"grid": {"finetune.seed": [1, "1"]}},
         "sweeps.rates.grid: seed 1: the same variant or name as in sweeps.rates.grid"),
        ({"grid": {"finetune.learning_rate": [float("nan")]}}, "finetune.learning_rate.0: nan is no finite number"),
        ({"grid": {"finetune.learning_rate": ["1e999"]}}, "finetune.learning_rate: inf is no finite number"),
        ({"variants": [{"finetune.method": "full", "finetune.lora.rank": 4}, {"finetune.method": "full"}]},
         "variants, number 2: method full: the same variant or name"),
        ({"variants": [{"finetune.method": "full", "finetune.lora.rank": 4, "name": "a"}, {"name": "a"}]},
         "variants, number 2: a: the same variant or name"),
        ({"variants": [{"name": "a" * 101}]}, "letters, digits, '_' and '-', 100 of them at most"),
        ({"grid": {"model.max_tiles": [2, 4]}}, "model.max_tiles: changes nothing with family: llava"),
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


@pytest.mark.parametrize(("name", "message"), [("results", "name of a target"), ("digits", "an experiment has")])
def test_a_sweep_has_a_name_of_its_own(name: str, message: str) -> None:
    config = grid(seed=[1])
    config["sweeps"] = {name: config["sweeps"]["rates"]}
    assert message in told(config)


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
        ("finetune.seed\n1\nx\n", "variants.tsv, line 3: finetune.seed: 'x' is text, not a whole number"),
        ("finetune.learning_rate\nyes\n", "line 2: finetune.learning_rate: true (for YAML also yes, on) is not a n"),
        ("finetune.learning_rate\n2026-01-01\n", "line 2: finetune.learning_rate: 2026-01-01 (a date) is not a nu"),
        ("finetune.learning_rate\nnan\n", "line 2: finetune.learning_rate: nan is no finite number"),
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


def test_a_table_that_is_not_there_is_told() -> None:
    assert "sweeps.rates.table: nowhere.tsv: no such file" in told(swept({"table": "nowhere.tsv"}))
    assert "sweeps.rates.table: 'table.xlsx' is none of what it may be: A .csv or .tsv file" in told(
        swept({"table": "table.xlsx"})
    )


def test_a_key_that_the_method_of_the_base_leaves_unused_is_told() -> None:
    config = grid(lora__rank=[4, 8])
    config["finetunes"]["qlora"]["method"] = "full"
    assert "sweeps.rates.grid: finetune.lora.rank: changes nothing with method: full" in told(config)
