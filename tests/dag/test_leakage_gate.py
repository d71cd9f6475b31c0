"""Fine-tuning waits for the search for leaked pictures, and a further evaluation never trains again.

The jobs are real, their scripts are stand-ins, the one that looks for leakage excepted.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from repository import copy_repository, jobs, snakemake

STAND_IN = """
import pathlib, shutil, sys
output = pathlib.Path(sys.argv[sys.argv.index("--output") + 1])
output.parent.mkdir(parents=True, exist_ok=True)
for name in (output.name, "metrics.jsonl", "report.md"):
    (output.parent / name).write_text("{}")
if "--root" in sys.argv:
    shutil.copy(pathlib.Path(sys.argv[sys.argv.index("--root") + 1]) / "pictures.jsonl", output.parent)
"""
WEIGHTS = ("language", "vision")
CONFIG: dict[str, Any] = {
    "datasets": {name: {"path": f"data/{name}", "annotations": "all.json"} for name in ("a", "b", "c", "d")},
    "models": {"tiny": {"family": "llava", **{part: {"path": f"data/tiny/{part}"} for part in WEIGHTS}}},
    "pretrains": {"first": {"model": "tiny", "dataset": "a"}},
    "finetunes": {"second": {"init": "first", "datasets": ["b"]}},
    "evaluations": {name: {"dataset": name} for name in ("c", "d")},
    "experiments": {"one": {"finetune": "second", "evaluations": ["c"]}},
}
TRAINED = ("results/pretrain/first/manifest.json", "results/finetune/second/manifest.json")


def pictures(folder: Path, name: str, split: str, *contents: str) -> None:
    (folder / "data" / name).mkdir(exist_ok=True)
    fixed = {"look": "0" * 16, "split": split}
    lines = [json.dumps({"path": f"{name}/{each}.png", "pixels": each * 64, **fixed}) for each in contents]
    (folder / "data" / name / "pictures.jsonl").write_text("\n".join(lines) + "\n")


def write_config(folder: Path, **experiments: dict[str, Any]) -> None:
    config = {**CONFIG, "experiments": {**CONFIG["experiments"], **experiments}}
    (folder / "leakage.yaml").write_text(yaml.safe_dump(config))


def run(folder: Path, *arguments: str, check: bool = True) -> str:
    return snakemake("finetune", "--configfile", "leakage.yaml", *arguments, folder=folder, check=check)


def changed(folder: Path) -> list[int]:
    return [(folder / path).stat().st_mtime_ns for path in TRAINED]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = copy_repository(tmp_path_factory.mktemp("leakage"))
    for script in (folder / "workflow" / "scripts").glob("*.py"):
        if script.name != "check_leakage.py":
            script.write_text(STAND_IN)
    for name, split, content in (("a", "train", "1"), ("b", "train", "2"), ("c", "test", "1"), ("d", "test", "4")):
        pictures(folder, name, split, content)
    write_config(folder)
    return folder


def test_a_leak_stops_before_fine_tuning_and_other_data_goes_on(clone: Path) -> None:
    """The leaked picture is one that the projector was trained with; the tests below go on from here."""
    output = run(clone, check=False)
    assert re.search(r"error: leakage: .*evaluation c: 1 of 1 pictures \(c/1\.png = a/1\.png\)", output)
    assert "same split seed" in output
    assert "Traceback" not in output
    assert not (clone / "results" / "finetune").exists()
    pictures(clone, "c", "test", "3")
    run(clone)
    assert all((clone / path).is_file() for path in TRAINED)
    assert jobs(run(clone, "-n")) == {}


def test_a_further_evaluation_is_checked_and_trains_nothing(clone: Path) -> None:
    before = changed(clone)
    write_config(clone, two={"finetune": "second", "evaluations": ["d"]})
    expected = {"validate_dataset": 1, "check_leakage": 1, "gate_training": 1, "total": 3}
    assert jobs(run(clone, "-n")) == expected
    run(clone)
    assert changed(clone) == before
    assert jobs(run(clone, "-n")) == {}


def test_a_further_evaluation_that_leaks_stops_and_trains_nothing(clone: Path) -> None:
    before = changed(clone)
    pictures(clone, "d", "test", "2")
    write_config(clone, two={"finetune": "second", "evaluations": ["d"]})
    assert "evaluation d: 1 of 1 pictures (d/2.png = b/2.png)" in run(clone, check=False)
    assert changed(clone) == before
    pictures(clone, "d", "test", "4")
    run(clone)
    assert changed(clone) == before


def test_other_training_data_does_train_again(clone: Path) -> None:
    pictures(clone, "b", "train", "2", "5")
    planned = jobs(run(clone, "-n"))
    assert planned["train_adapter"] == planned["check_leakage"] == 1
    assert "train_projector" not in planned
    pictures(clone, "b", "train", "2", "4")
    before = changed(clone)
    assert "evaluation d: 1 of 1 pictures (d/4.png = b/4.png)" in run(clone, check=False)
    assert changed(clone) == before
    pictures(clone, "b", "train", "2", "5")
    run(clone)
    assert [new > old for new, old in zip(changed(clone), before, strict=True)] == [False, True]
