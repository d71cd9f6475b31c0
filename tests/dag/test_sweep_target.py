"""A sweep through Snakemake: what variants share is planned once, and a further one adds its own jobs and the table."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from repository import ROOT, copy_repository, jobs, snakemake

RECIPE = yaml.safe_load((ROOT / "config" / "recipes" / "sweep.yaml").read_text(encoding="utf-8"))
ONE_MORE = {"train_adapter": 1, "merge_adapter": 1, "convert_model": 1, "ask_transformers": 4, "score_answers": 4,
            "compare_checkpoints": 1, "render_report": 1}  # fmt: skip


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository without results."""
    return copy_repository(tmp_path_factory.mktemp("sweeps"))


def planned(clone: Path, grid: dict[str, list[Any]], *arguments: str) -> dict[str, int]:
    """Rule -> number of jobs of the recipe with another grid."""
    (clone / "sweep.yaml").write_text(yaml.safe_dump({**RECIPE, "sweeps": {"rates": {"base": "tiny", "grid": grid}}}))
    return jobs(snakemake("-n", *arguments, "--configfile", "sweep.yaml", folder=clone))


def difference(more: dict[str, int], fewer: dict[str, int]) -> dict[str, int]:
    return {rule: count - fewer.get(rule, 0) for rule, count in more.items() if count != fewer.get(rule, 0)}


def test_a_further_variant_adds_what_is_its_own(clone: Path) -> None:
    two = planned(clone, {"finetune.learning_rate": [1e-3, 2e-4]})
    three = planned(clone, {"finetune.learning_rate": [5e-4, 2e-4, 1e-3]})
    assert two["train_adapter"] == 2
    for rule in ("train_projector", "build_model", "check_leakage", "gate_training", "tabulate_sweep"):
        assert two[rule] == 1, rule
    assert two["count_tokens"] == 2  # of the pretrain and the finetune
    assert two["ask_transformers"] == 2 * (2 + 2 * 2)  # two evaluations: before and pretrained once, after and blind
    assert difference(three, two) == {**ONE_MORE, "total": sum(ONE_MORE.values())}


def test_the_example_of_the_page_is_a_target(clone: Path) -> None:
    page = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8")
    example = re.search(r"```yaml\n# (\S+)\n(.*?)```", page, re.DOTALL)
    command = re.search(r"^    snakemake (.*)$", page, re.MULTILINE)
    assert example and command
    (clone / example[1]).write_text(example[2])
    sweep = jobs(snakemake("-n", *command[1].split(), folder=clone))
    assert sweep["train_adapter"] == sweep["render_report"] == 4
    assert sweep["train_projector"] == sweep["tabulate_sweep"] == 1


def test_one_variant_can_be_chosen(clone: Path) -> None:
    grid = {"pretrain.learning_rate": [3e-3, 1e-3], "finetune.seed": [0, 1, 2]}
    one = planned(clone, grid, "finetune", "--config", "experiment=rates-seed-1--pretrain_learning_rate-1e-3")
    assert one["train_adapter"] == one["train_projector"] == 1


def test_results_are_tabled_as_they_are_and_nothing_is_run_for_it(clone: Path) -> None:
    assert jobs(snakemake("-n", "results", folder=clone)) == {"results": 1, "total": 1}
