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

from conftest import OwnRun
from repository import ENVIRONMENT, TINY, copy_repository, jobs, snakemake


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def printed_command(output: str, script: str) -> str:
    """The command of a job as snakemake shows it."""
    line = next(line for line in output.splitlines() if f"{script}.py" in line)
    return line[line.index("python ") :]


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
    assert "Nothing to be done" in snakemake(*TINY, folder=finished[0])


def test_touching_pictures_and_weights_reruns_nothing(finished: tuple[Path, str], results: Path) -> None:
    for path in [*results.rglob("*.safetensors"), *results.rglob("*.png"), *results.rglob("manifest.json")]:
        path.touch()
    assert "Nothing to be done" in snakemake("-n", *TINY, folder=finished[0])


def test_a_stage_runs_by_hand_from_the_printed_command(finished: tuple[Path, str], results: Path) -> None:
    command = printed_command(finished[1], "merge_adapter")
    before = read(results / "merged" / "qlora" / "manifest.json")
    subprocess.run(["bash", "-c", command], cwd=finished[0], check=True, capture_output=True, env=ENVIRONMENT)
    assert read(results / "merged" / "qlora" / "manifest.json") == before


def test_snakemakes_own_report(finished: tuple[Path, str]) -> None:
    snakemake(*TINY, "--report", "report.zip", folder=finished[0])
    assert (finished[0] / "report.zip").stat().st_size > 100_000


@pytest.fixture(scope="module")
def again(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some answers in a second copy, interrupted while it trains and started again; only the downloads are shared."""
    folder = copy_repository(tmp_path_factory.mktemp("again"))
    shutil.copytree(results / "sources", folder / "results" / "tiny" / "sources")
    text = (folder / "config" / "recipes" / "tiny.yaml").read_text()
    every_step = text.replace("    batch_size: 16\n", "    batch_size: 16\n    resources: {checkpoint_steps: 5}\n")
    (folder / "config" / "recipes" / "tiny.yaml").write_text(every_step)
    answers = [f"results/tiny/evaluate/held-out/{name}/scores.json" for name in ("converted-qlora", "model-tiny")]
    run = subprocess.Popen(["snakemake", *TINY, "--", *answers], cwd=folder, start_new_session=True, env=ENVIRONMENT,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    state = folder / "results" / "tiny" / "checkpoints" / "finetune" / "qlora"
    deadline = time.monotonic() + 600
    while not list(state.glob("*/checkpoint-*/trainer_state.json")):
        assert run.poll() is None, "ended before it could be interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(run.pid, signal.SIGINT)  # what Ctrl-C in a terminal does
    run.wait(60)
    assert run.returncode != 0
    assert not (folder / "results" / "tiny" / "finetune" / "qlora").exists()
    snakemake(*TINY, "--", *answers, folder=folder)
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


def test_bad_data_stops_before_training_and_fixing_it_goes_on(own_run: OwnRun, results: Path) -> None:
    assert "0003.png" in own_run.refused
    assert "0005.png" in own_run.refused
    assert "2 of 20 records" in own_run.refused
    assert "Traceback" not in own_run.refused
    assert "rule train_adapter" not in own_run.refused
    assert own_run.left == ["data/mine/problems.json", "data/mine/problems.md"]
    assert (results / "report" / "mine" / "index.html").is_file()
    assert not (results / "data" / "mine" / "problems.md").exists()


def test_own_pictures_share_the_projector(own_run: OwnRun) -> None:
    planned = jobs(snakemake("mine", *TINY, "mine.yaml", "-n", "--forceall", folder=own_run.folder))
    assert planned["train_projector"] == planned["train_adapter"] == 1


def test_shell_quoting_survives_paths_with_spaces(finished: tuple[Path, str]) -> None:
    command = printed_command(finished[1], "train_adapter")
    words = shlex.split(command.split(" 2> ")[0])
    assert json.loads(words[words.index("--config") + 1])["method"] == "qlora"
