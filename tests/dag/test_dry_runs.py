"""Every recipe plans; the plan has the jobs that the recipe describes; edits re-run what they should and no more."""

from __future__ import annotations

from pathlib import Path

import pytest

from repository import ROOT, copy_repository, jobs, snakemake

RECIPES = sorted((ROOT / "config" / "recipes").glob("*.yaml"))


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository without results."""
    return copy_repository(tmp_path_factory.mktemp("dag"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_plans(clone: Path, recipe: Path) -> None:
    planned = jobs(snakemake("-n", "--configfile", f"config/recipes/{recipe.name}", folder=clone))
    assert planned["render_report"] >= 1
    assert planned["train_adapter"] >= 1


def test_the_demo_has_the_jobs_it_describes(clone: Path) -> None:
    assert jobs(snakemake("-n", folder=clone)) == {
        "fetch_source": 3, "prepare_source": 1, "validate_dataset": 2, "build_model": 1, "train_projector": 1,
        "train_adapter": 1, "merge_adapter": 1, "convert_model": 1, "ask_transformers": 4, "score_answers": 4,
        "check_leakage": 1, "gate_training": 1, "count_tokens": 2, "evaluate_baselines": 1, "compare_checkpoints": 1,
        "render_report": 1, "all": 1, "total": 27,
    }  # fmt: skip


def test_experiments_share_their_base_model(clone: Path) -> None:
    planned = jobs(snakemake("-n", "--configfile", "config/recipes/internvl2_2b.yaml", folder=clone))
    assert planned["train_adapter"] == planned["merge_adapter"] == planned["render_report"] == 3
    assert planned["build_model"] == planned["fetch_source"] == planned["validate_dataset"] == 1
    assert planned["ask_transformers"] == 1 + 3 * 2  # the base once; after and blind of each


@pytest.mark.parametrize(
    ("target", "last"),
    [
        ("data", "validate_dataset"), ("pretrain", "train_projector"), ("finetune", "train_adapter"),
        ("merge", "convert_model"), ("evaluate", "score_answers"), ("report", "render_report"),
        ("digits", "render_report"),
    ],
)  # fmt: skip
def test_targets(clone: Path, target: str, last: str) -> None:
    order = ["validate_dataset", "train_projector", "train_adapter", "convert_model", "score_answers",
             "render_report"]  # fmt: skip
    planned = jobs(snakemake("-n", target, folder=clone))
    later = order[order.index(last) + 1 :]
    assert last in planned
    assert not set(later) & set(planned)


def test_one_experiment_can_be_chosen(clone: Path) -> None:
    arguments = ("-n", "report", "--configfile", "config/recipes/internvl2_2b.yaml", "--config")
    planned = jobs(snakemake(*arguments, "experiment=internvl2-lora", folder=clone))
    assert planned["train_adapter"] == 1


def test_a_wrong_key_is_one_clear_message(clone: Path) -> None:
    (clone / "wrong.yaml").write_text("finetunes: {qlora: {lerning_rate: 1}}\n")
    arguments = ("-n", "--configfile", "config/config.yaml", "wrong.yaml")
    output = snakemake(*arguments, folder=clone, check=False)
    assert "finetunes.qlora: no key 'lerning_rate' here; did you mean 'learning_rate'?" in output
    assert "Traceback" not in output


def test_printed_commands_carry_everything(clone: Path) -> None:
    """What `snakemake -p` prints names script, options and paths, and nothing of snakemake."""
    output = snakemake("-n", "-p", folder=clone)
    command = next(line for line in output.splitlines() if "train_adapter.py" in line)
    script = "python workflow/scripts/launch.py -- workflow/scripts/train_adapter.py"
    options = ("--config '{", '"method": "qlora"', "--model results/models", "--projector results/pretrain/projector")
    for part in (script, *options, "--execution '{"):
        assert part in command


def test_lint_is_clean(clone: Path) -> None:
    assert "in a good condition" in snakemake("--lint", folder=clone)


def test_rulegraph_and_dag(clone: Path) -> None:
    assert "train_adapter" in snakemake("--rulegraph", folder=clone)
    assert "train_projector" in snakemake("--dag", folder=clone)


def test_the_slurm_profile_is_found_by_its_name(clone: Path) -> None:
    assert jobs(snakemake("-n", "--profile", "slurm", folder=clone))["total"] == 27


OWN = """
sources:
  photos: {url: "file:///photos.zip", files: {photos.zip: null}, unpack: ["*.zip"]}
datasets:
  unlabelled: {source: photos, generate: {endpoint: "http://localhost:23333/v1", model: teacher}}
  labelled: {path: data/tiny, annotations: labels.csv, repeat: 3.5}
finetunes:
  mixed: {init: projector, datasets: {unlabelled: 1, labelled: 3}, too_long: fewer-turns}
experiments:
  mixed: {finetune: mixed, evaluations: [held-out]}
"""


def test_questions_are_generated_and_data_sets_are_mixed(clone: Path) -> None:
    (clone / "own.yaml").write_text(OWN)
    output = snakemake("-n", "-p", "mixed", "--configfile", "config/config.yaml", "own.yaml", folder=clone)
    planned = jobs(output)
    assert planned["generate_annotations"] == planned["check_leakage"] == planned["train_adapter"] == 1
    assert planned["fetch_source"] == 4
    command = next(line for line in output.splitlines() if "train_adapter.py" in line)
    assert '"repeat": [1, 3.5]' in command
    assert '"weights": [1, 3]' in command
