"""An official InternVL directory through the whole workflow: LoRA, merge, report, and the official layout again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from official import make_official
from repository import copy_repository, jobs, snakemake
from vlmflow.weights.checkpoint import Checkpoint

COLOURS = ("red", "green", "blue", "white", "black", "yellow")
RUN = ("--configfile", "internvl.yaml", "--cores", "2")


def write_pictures(folder: Path) -> None:
    folder.mkdir()
    records = []
    for index in range(48):
        colour = COLOURS[index % len(COLOURS)]
        name = f"{index}.png"
        Image.new("RGB", (30 + index, 40), colour).save(folder / name)
        turns = [{"from": "human", "value": "<image>\nWhich colour?"}, {"from": "gpt", "value": colour}]
        records.append({"id": str(index), "image": name, "conversations": turns})
    (folder / "train.json").write_text(json.dumps(records))


def write_config(folder: Path) -> None:
    config: dict[str, Any] = {
        "results": "results/internvl",
        "models": {
            "base": {"family": "internvl", "checkpoint": {"path": "official"}, "max_tiles": 2, "dtype": "float32"}
        },
        "datasets": {"colours": {"path": "pictures", "annotations": "train.json", "split": {"test": 0.3}}},
        "finetunes": {
            "lora": {
                "init": "base",
                "datasets": ["colours"],
                "method": "lora",
                "lora": {"rank": 4, "alpha": 8, "vision_rank": 2, "vision_alpha": 4},
                "batch_size": 8,
                "learning_rate": 0.01,
                "convert": {"dtype": "float32", "official": True},
            }
        },
        "evaluations": {"held-out": {"dataset": "colours", "max_new_tokens": 4}},
        "experiments": {"colours": {"finetune": "lora", "evaluations": ["held-out"]}},
    }
    (folder / "internvl.yaml").write_text(yaml.safe_dump(config))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository in which the workflow has run on a tiny official InternVL2-2B."""
    folder = copy_repository(tmp_path_factory.mktemp("internvl"))
    make_official("internvl2-2b", folder / "official", dtype=torch.float32, shards=2)
    write_pictures(folder / "pictures")
    write_config(folder)
    snakemake(*RUN, folder=folder)
    return folder


def test_the_official_layout_comes_back_with_what_was_learnt(finished: Path) -> None:
    source, made = finished / "official", finished / "results" / "internvl" / "official" / "lora"
    old, new = Checkpoint(source), Checkpoint(made)
    assert old.kinds == new.kinds
    changed = {name for name in old.kinds if not torch.equal(old.read(name), new.read(name))}
    assert {name.split(".")[0] for name in changed} == {"language_model", "vision_model", "mlp1"}
    for file in ("tokenizer.json", "modeling_internvl_chat.py"):
        assert (made / file).read_bytes() == (source / file).read_bytes()
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (source, made))
    assert after == {**before, "max_dynamic_patch": 2}


def test_the_report_compares_before_and_after(finished: Path) -> None:
    comparison = json.loads((finished / "results/internvl/report/colours/comparison.json").read_text())
    assert {"before", "after"} <= {system["label"] for system in comparison["evaluations"][0]["systems"]}
    assert comparison["headline"]["n"] > 5
    provenance = json.loads((finished / "results/internvl/merged/lora/provenance.json").read_text())
    assert provenance["logits_merged_against_unmerged"]["argmax_agreement"] == 1.0


def test_a_second_run_does_nothing_and_a_new_checkpoint_is_built_again(finished: Path) -> None:
    assert "Nothing to be done" in snakemake("-n", *RUN, folder=finished)
    config = finished / "official" / "config.json"
    text = config.read_text()
    config.write_text(text + " ")
    planned = jobs(snakemake("-n", *RUN, folder=finished))
    config.write_text(text)
    assert planned["build_model"] == planned["train_adapter"] == planned["convert_official"] == 1
    assert "validate_dataset" not in planned
