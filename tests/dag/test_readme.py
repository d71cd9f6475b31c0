"""What the README tells a newcomer to type works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from repository import ROOT, copy_repository, jobs, snakemake

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMAND = ("mine", "--configfile", "config/config.yaml", "config/mine.yaml")
TRAINING = {"validate_dataset": 1, "train_adapter": 1, "merge_adapter": 1, "convert_model": 1, "ask_transformers": 4,
            "score_answers": 4, "evaluate_baselines": 1, "compare_checkpoints": 1, "render_report": 1,
            "check_leakage": 1, "gate_training": 1, "count_tokens": 1}  # fmt: skip


def example(page: str, name: str) -> str:
    """The YAML block of a page that begins with its file name as a comment."""
    found = re.search(rf"```yaml\n(# {re.escape(name)}\n.*?)```", page, re.DOTALL)
    assert found, name
    return found[1]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with a user's pictures and the README's configuration."""
    folder = copy_repository(tmp_path_factory.mktemp("readme"))
    (folder / "data" / "mine").mkdir(exist_ok=True)
    table = re.search(r"```csv\n(.*?)```", README, re.DOTALL)
    assert table
    (folder / "data" / "mine" / "answers.csv").write_text(table[1])
    (folder / "config" / "mine.yaml").write_text(example(README, "config/mine.yaml"))
    return folder


def test_the_example_is_short_and_its_command_is_in_the_readme() -> None:
    assert len(example(README, "config/mine.yaml").splitlines()) <= 10
    assert f"snakemake {' '.join(COMMAND)}\n" in README


def test_own_pictures_from_a_fresh_clone(clone: Path) -> None:
    planned = jobs(snakemake("-n", *COMMAND, folder=clone))
    assert planned == {**TRAINING, "fetch_source": 3, "prepare_source": 1, "validate_dataset": 2, "build_model": 1,
                       "train_projector": 1, "count_tokens": 2, "mine": 1, "total": 27}  # fmt: skip


def test_own_pictures_reuse_the_demos_model_and_projector(clone: Path) -> None:
    results = clone / "results"
    stages = {
        "sources/digits": [],
        "prepared/digits": [],
        "data/name-the-digit": ["report.md"],
        "models/smollm2-vit": [],
        "pretrain/projector": ["metrics.jsonl"],
    }
    made = [results / stage / name for stage, others in stages.items() for name in (*others, "manifest.json")]
    for path in made:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    planned = jobs(snakemake("-n", *COMMAND, "--rerun-triggers", "mtime", folder=clone))
    for path in made:
        path.unlink()
    assert planned == {**TRAINING, "mine": 1, "total": sum(TRAINING.values()) + 1}


def test_larger_pictures_bring_a_model_of_their_own(clone: Path) -> None:
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    (clone / "config" / "larger.yaml").write_text(example(page, "config/larger.yaml"))
    output = snakemake("-n", *COMMAND, "config/larger.yaml", folder=clone)
    assert "results/models/smollm2-vit-112/manifest.json" in output
    assert "smollm2-vit/manifest.json" not in output


def test_every_target_of_the_table_is_there(clone: Path) -> None:
    targets = re.findall(r"^\| `snakemake (\w+)`", README, re.MULTILINE)
    assert len(targets) == 8
    assert jobs(snakemake("-n", *targets, folder=clone)).keys() >= set(targets)


def test_the_command_to_paste_is_the_one_that_is_printed(clone: Path) -> None:
    command = next(line for line in README.splitlines() if line.startswith("python workflow/scripts/"))
    assert f"Shell command: {command} 2> " in snakemake("-n", "merge", folder=clone)


def test_every_recipe_is_in_the_table() -> None:
    assert {path.stem for path in (ROOT / "config" / "recipes").glob("*.yaml")} <= set(
        re.findall(r"`([\w.]+)`", README)
    )
