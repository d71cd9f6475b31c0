"""What is said of the results on the disk, and what is deleted."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from vlmflow.files import write_json, write_manifest
from vlmflow.housekeeping.checkpoints import clean_checkpoints
from vlmflow.housekeeping.disk import print_disk
from vlmflow.housekeeping.sizes import bytes_as_text, size_of
from vlmflow.training.features import place_of, tower_hash

FOLDERS: dict[str, list[str]] = {"sources": ["raw"], "data": ["pets"], "models": ["tiny"], "pretrain": ["first"],
                                 "finetune": ["second"], "merged": ["second"], "converted": ["second"],
                                 "evaluate": ["held"], "tables": ["all", "ranks"]}  # fmt: skip


def fill(folder: Path, name: str = "file", size: int = 100_000) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(os.urandom(size))
    return folder


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "my results"


@contextmanager
def lock_of_another(folder: Path) -> Iterator[None]:
    """Hold the lock of a training in another process: a process never shuts itself out."""
    program = "import sys; from pathlib import Path; from vlmflow.training.state import lock_of;"
    program += "lock = lock_of(Path(sys.argv[1])); print(flush=True); sys.stdin.read()"
    environment = {**os.environ, "PYTHONPATH": "workflow"}
    command = [sys.executable, "-c", program, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield
        process.communicate()


def table(results: Path, capsys: pytest.CaptureFixture[str]) -> tuple[dict[tuple[str, str], str], str]:
    """(stage, name) -> size and note, and what follows the table."""
    folders = results.with_name("folders.json")
    write_json(folders, FOLDERS)
    print_disk(results, folders)
    head, tail = capsys.readouterr().out.split("\n\n", 1)
    rows = [line.split(maxsplit=2) for line in head.splitlines()[1:]]
    return {(stage, name): rest for stage, name, rest in rows}, tail


def test_what_could_go(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for stage, name in [("data", "pets"), ("data", "old"), ("finetune", "second"), ("converted", "second")]:
        write_manifest(fill(results / stage / name))
    fill(results / "sources" / ".raw.part")
    fill(results / "merged" / "second", "model.safetensors")
    fill(results / "checkpoints" / "finetune" / "second")
    fill(results / "checkpoints" / "pretrain" / "first")
    fill(results / "cache" / "pictures", "pets.sqlite", 10)
    fill(results / "tiny" / "data" / "pets")  # the results of another workflow
    before = sorted(results.rglob("*"))
    rows, tail = table(results, capsys)
    assert {key: rest.split(" kB", 1)[1].strip() for key, rest in rows.items()} == {
        ("data", "old"): "not in this configuration",
        ("data", "pets"): "",
        ("finetune", "second"): "",
        ("merged", "second"): "made again when needed: finetunes.NAME.merge.keep: false",
        ("converted", "second"): "",
        ("checkpoints/pretrain", "first"): "",
        ("checkpoints/finetune", "second"): "finished: snakemake clean_checkpoints",
        ("cache/pictures", "pets.sqlite"): "",
    }
    assert "kB can go; " in tail
    assert tail.endswith(f"has use for them:\n  rm -r '{results}/data/old'\n")
    assert sorted(results.rglob("*")) == before


def test_what_is_left_of_variants(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("model-tiny", "pretrain-first", "converted-second", "converted-second+blind", "converted-old+blind"):
        fill(results / "evaluate" / "held" / name)
    fill(results / "evaluate" / "held", "baselines-second.json")
    fill(results / "tables" / "ranks")
    fill(results / "tables" / "gone")
    fill(results / "tables", "all.tsv")
    for name in ("second", "old"):
        fill(results / "merged" / name)
        (results / "merged" / f"{name}.weights").touch()
    rows, tail = table(results, capsys)
    assert [name for stage, name in rows if stage == "merged"] == ["old", "old.weights", "second"]
    assert {name for (_, name), note in rows.items() if "not in this" in note} == {
        "old",
        "old.weights",
        "converted-old+blind",
        "gone",
    }
    assert tail.count("rm -r") == 4


def test_no_results_yet(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_disk(results, tmp_path / "folders.json")
    assert capsys.readouterr().out == f"{results}: nothing is there yet\n"


def test_features_of_a_tower_that_no_model_has(
    results: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    used = place_of(tower_hash(tiny_model), torch.bfloat16)
    fill(results / "cache" / "features" / used)
    fill(results / "cache" / "features" / "0123")
    assert not any("tower" in note for note in table(results, capsys)[0].values()), "the model is not built yet"
    (results / "models").mkdir()
    (results / "models" / "tiny").symlink_to(tiny_model.parent)
    notes = {name for (_, name), note in table(results, capsys)[0].items() if "has this vision tower" in note}
    assert notes == {"0123"}


def test_a_file_with_two_names_counts_once(tmp_path: Path) -> None:
    one = fill(tmp_path / "one", size=1_000_000)
    (tmp_path / "two").mkdir()
    os.link(one / "file", tmp_path / "two" / "file")
    seen: set[tuple[int, int]] = set()
    assert size_of(one, seen) >= 1_000_000
    assert size_of(tmp_path / "two", seen) == 0


@pytest.mark.parametrize(("size", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.25e12, "2250.0 GB")])
def test_sizes_in_words(size: float, text: str) -> None:
    assert bytes_as_text(size) == text


def test_state_of_finished_training_goes(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("done", "unfinished", "busy", "broken"):
        fill(results / "checkpoints" / "finetune" / name)
    for name in ("done", "busy", "broken"):
        write_manifest(fill(results / "finetune" / name))
    (results / "finetune" / "broken" / "file").unlink()
    with lock_of_another(results / "checkpoints" / "finetune" / "busy"):
        clean_checkpoints(results)
    left = sorted(path.name for path in (results / "checkpoints" / "finetune").iterdir())
    assert left == ["broken", "busy", "unfinished"]
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in printed[:-1]] == ["kept", "kept", "deleted", "kept"]
    assert "where a process trains" in printed[1]
    assert printed[-1].endswith("kB freed")
    assert (results / "finetune" / "done" / "file").exists()


def test_nothing_to_clean(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clean_checkpoints(results)
    assert capsys.readouterr().out == "0 B freed\n"
