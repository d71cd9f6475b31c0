"""`snakemake plan` prepares what it reads, trains nothing, and follows the chosen experiment."""

from __future__ import annotations

from pathlib import Path

import pytest

from repository import copy_repository, jobs, snakemake


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository without results."""
    return copy_repository(tmp_path_factory.mktemp("plan"))


def test_nothing_is_trained(clone: Path) -> None:
    assert jobs(snakemake("-n", "plan", folder=clone)) == {
        "fetch_source": 3, "prepare_source": 1, "validate_dataset": 2, "build_model": 1, "count_tokens": 2,
        "plan_training": 2, "plan": 1, "total": 12,
    }  # fmt: skip


def test_one_experiment_can_be_chosen(clone: Path) -> None:
    arguments = ("-n", "plan", "--configfile", "config/recipes/internvl2_2b.yaml")
    assert jobs(snakemake(*arguments, folder=clone))["plan_training"] == 3
    assert jobs(snakemake(*arguments, "--config", "experiment=internvl2-lora", folder=clone))["plan_training"] == 1
