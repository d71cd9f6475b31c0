"""The tiny recipe from nothing to its report, and what a user does next."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from repository import ENVIRONMENT, copy_repository, jobs, snakemake

RECIPE = ("--configfile", "config/recipes/tiny.yaml")


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def printed_command(output: str, script: str) -> str:
    """The command of a job as snakemake shows it."""
    line = next(line for line in output.splitlines() if f"{script}.py" in line)
    return line[line.index("python ") :]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A copy of the repository in which the tiny recipe has run, and what was printed."""
    folder = copy_repository(tmp_path_factory.mktemp("e2e"))
    return folder, snakemake(*RECIPE, folder=folder)


@pytest.fixture(scope="module")
def results(finished: tuple[Path, str]) -> Path:
    return finished[0] / "results" / "tiny"


def test_after_beats_before_on_pictures_that_were_held_out(results: Path) -> None:
    comparison = read(results / "report" / "tiny" / "comparison.json")
    headline = comparison["headline"]
    assert headline["n"] == 227
    assert headline["after"] >= 0.8
    assert headline["before"] <= 0.3
    assert headline["ci95"][0] > 0.3
    systems = {system["label"]: system["value"] for system in comparison["evaluations"][0]["systems"]}
    assert systems["blind"] < headline["after"] - 0.3, "the pictures are looked at"
    assert set(systems) >= {"before", "pretrained", "after", "blind", "majority", "nearest_neighbour"}


def test_no_picture_is_in_two_splits(results: Path) -> None:
    seen: dict[str, str] = {}
    for dataset in ("name-the-digit", "digit-questions"):
        for split in ("train", "validation", "test"):
            for line in (results / "data" / dataset / f"{split}.jsonl").read_text().splitlines():
                for image in json.loads(line)["images"]:
                    assert seen.setdefault(image["sha256"], split) == split


def test_merging_and_converting_were_checked(results: Path) -> None:
    merged = read(results / "merged" / "qlora" / "provenance.json")
    assert merged["logits_merged_against_unmerged"]["argmax_agreement"] == 1.0
    assert merged["logits_merged_against_trained"] is not None
    converted = read(results / "converted" / "qlora" / "provenance.json")
    assert converted["logits_difference"]["argmax_agreement"] >= 0.9


def test_the_deployment_directory_loads_as_documented(results: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = results / "converted" / "qlora"
    assert type(AutoModelForImageTextToText.from_pretrained(folder)).__name__ == "LlavaForConditionalGeneration"
    assert AutoProcessor.from_pretrained(folder).chat_template


def test_the_headline_is_printed_and_the_report_is_one_file(finished: tuple[Path, str], results: Path) -> None:
    assert re.search(r"exact match [\d.]+% -> [\d.]+%", finished[1])
    assert "report: results/tiny/report/tiny/index.html" in finished[1]
    page = (results / "report" / "tiny" / "index.html").read_text(encoding="utf-8")
    assert "data:image/" in page
    assert not re.search(r"""(src|href)=["'](https?:|//)""", page)


def test_every_stage_says_where_it_comes_from(results: Path) -> None:
    for stage in ("models/tiny", "pretrain/projector", "finetune/qlora", "merged/qlora", "converted/qlora"):
        provenance = read(results / stage / "provenance.json")
        assert provenance["packages"]["torch"]
        assert provenance["inputs"]
        assert provenance["peak_memory_mb"] > 0


def test_a_second_run_does_nothing(finished: tuple[Path, str]) -> None:
    assert "Nothing to be done" in snakemake(*RECIPE, folder=finished[0])


@pytest.mark.parametrize(
    ("old", "new", "rerun"),
    [
        ("max_new_tokens: 8", "max_new_tokens: 6",
         {"evaluate_checkpoint", "evaluate_baselines", "compare_checkpoints", "render_report"}),
        ("micro_batch_size: 64", "micro_batch_size: 32", set()),
        ("title: Tiny models", "title: Small models", {"compare_checkpoints", "render_report"}),
        ("dtype: float16, max", "dtype: bfloat16, max",
         {"convert_model", "evaluate_checkpoint", "compare_checkpoints", "render_report"}),
        ("learning_rate: 0.001\n", "learning_rate: 0.002\n",
         {"train_adapter", "merge_adapter", "convert_model", "evaluate_checkpoint", "compare_checkpoints",
          "render_report"}),
    ],
    ids=["evaluation", "resources", "title", "conversion", "finetune"],
)  # fmt: skip
def test_an_edit_reruns_its_stage_and_what_follows(
    finished: tuple[Path, str], old: str, new: str, rerun: set[str]
) -> None:
    text = (finished[0] / "config" / "recipes" / "tiny.yaml").read_text()
    assert old in text
    (finished[0] / "edited.yaml").write_text(text.replace(old, new))
    planned = jobs(snakemake("-n", "--configfile", "edited.yaml", folder=finished[0]))
    assert set(planned) - {"all", "total"} == rerun


def test_touching_pictures_and_weights_reruns_nothing(finished: tuple[Path, str], results: Path) -> None:
    for path in [*results.rglob("*.safetensors"), *results.rglob("*.png"), *results.rglob("manifest.json")]:
        path.touch()
    assert "Nothing to be done" in snakemake("-n", *RECIPE, folder=finished[0])


def test_a_stage_runs_by_hand_from_the_printed_command(finished: tuple[Path, str], results: Path) -> None:
    command = printed_command(finished[1], "merge_adapter")
    before = read(results / "merged" / "qlora" / "manifest.json")
    subprocess.run(["bash", "-c", command], cwd=finished[0], check=True, capture_output=True, env=ENVIRONMENT)
    assert read(results / "merged" / "qlora" / "manifest.json") == before


def test_snakemakes_own_report(finished: tuple[Path, str]) -> None:
    snakemake(*RECIPE, "--report", "report.zip", folder=finished[0])
    assert (finished[0] / "report.zip").stat().st_size > 100_000


@pytest.fixture(scope="module")
def again(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second copy, interrupted while it trains and started again; only the downloads are shared."""
    folder = copy_repository(tmp_path_factory.mktemp("again"))
    shutil.copytree(results / "sources", folder / "results" / "tiny" / "sources")
    text = (folder / "config" / "recipes" / "tiny.yaml").read_text()
    every_step = text.replace("    batch_size: 16\n", "    batch_size: 16\n    resources: {checkpoint_steps: 5}\n")
    (folder / "config" / "recipes" / "tiny.yaml").write_text(every_step)
    run = subprocess.Popen(["snakemake", *RECIPE], cwd=folder, start_new_session=True, env=ENVIRONMENT,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    state = folder / "results" / "tiny" / "checkpoints" / "finetune" / "qlora"
    deadline = time.monotonic() + 240
    while not list(state.glob("*/checkpoint-*/trainer_state.json")):
        assert run.poll() is None, "ended before it could be interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(run.pid, signal.SIGINT)  # what Ctrl-C in a terminal does
    run.wait(60)
    assert run.returncode != 0
    assert not (folder / "results" / "tiny" / "finetune" / "qlora").exists()
    snakemake(*RECIPE, folder=folder)
    return folder / "results" / "tiny"


def test_an_interrupted_run_was_resumed(again: Path) -> None:
    assert read(again / "finetune" / "qlora" / "provenance.json")["training"]["resumed_at_step"] >= 5


@pytest.mark.parametrize(
    "file",
    ["pretrain/projector/projector.safetensors", "finetune/qlora/adapter_model.safetensors",
     "finetune/qlora/projector.safetensors", "merged/qlora/model.safetensors", "converted/qlora",
     "evaluate/held-out/converted-qlora/predictions.jsonl", "evaluate/held-out/model-tiny/predictions.jsonl"],
)  # fmt: skip
def test_equal_configurations_give_equal_bytes(results: Path, again: Path, file: str) -> None:
    one, other = results / file, again / file
    if one.is_dir():
        assert read(one / "manifest.json")["hash"] == read(other / "manifest.json")["hash"]
    else:
        assert one.read_bytes() == other.read_bytes()


OWN = """
datasets:
  mine: {path: data/mine, annotations: answers.csv, split: {validation: 0, test: 0.2}}
finetunes:
  mine: {init: projector, datasets: [mine], batch_size: 4}
evaluations:
  mine: {dataset: mine, max_new_tokens: 4}
experiments:
  mine: {finetune: mine, evaluations: [mine]}
"""


@pytest.fixture
def own_pictures(finished: tuple[Path, str], results: Path) -> Path:
    """A user's own folder next to the finished recipe: 20 pictures and a table of answers."""
    mine = finished[0] / "data" / "mine"
    shutil.rmtree(mine, ignore_errors=True)
    mine.mkdir()
    pictures = sorted((results / "prepared" / "digits" / "images").glob("*.png"))[:20]
    for picture in pictures:
        shutil.copy(picture, mine)
    rows = "".join(f"{picture.name},Is it a digit?,yes\n" for picture in pictures)
    (mine / "answers.csv").write_text("image,question,answer\n" + rows)
    (finished[0] / "mine.yaml").write_text(OWN)
    return mine


def own(folder: Path, *arguments: str, check: bool = True) -> str:
    return snakemake("mine", *RECIPE, "mine.yaml", *arguments, folder=folder, check=check)


def test_bad_data_stops_before_training_and_fixing_it_goes_on(
    finished: tuple[Path, str], results: Path, own_pictures: Path
) -> None:
    folder = finished[0]
    good = (own_pictures / "0003.png").read_bytes()
    (own_pictures / "0003.png").write_bytes(good[:60])
    (own_pictures / "0005.png").unlink()
    output = own(folder, check=False)
    assert "0003.png" in output
    assert "0005.png" in output
    assert "2 of 20 records" in output
    assert "Traceback" not in output
    assert "rule train_adapter" not in output
    assert sorted(path.name for path in (results / "data" / "mine").iterdir()) == ["problems.json", "problems.md"]
    assert not (results / "finetune" / "mine").exists()
    (own_pictures / "0003.png").write_bytes(good)
    (own_pictures / "0005.png").write_bytes((own_pictures / "0004.png").read_bytes())
    own_pictures.chmod(0o555)  # only read
    try:
        own(folder)
    finally:
        own_pictures.chmod(0o755)
    assert (results / "report" / "mine" / "index.html").is_file()
    assert not (results / "data" / "mine" / "problems.md").exists()


def test_own_pictures_share_the_projector(finished: tuple[Path, str], own_pictures: Path) -> None:
    del own_pictures
    planned = jobs(own(finished[0], "-n", "--forceall"))
    assert planned["train_projector"] == planned["train_adapter"] == 1


def test_shell_quoting_survives_paths_with_spaces(finished: tuple[Path, str]) -> None:
    command = printed_command(finished[1], "train_adapter")
    words = shlex.split(command.split(" 2> ")[0])
    assert json.loads(words[words.index("--config") + 1])["method"] == "qlora"
