"""Artefacts are whole or absent, and a manifest stands for their content."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vlmflow.errors import UserError
from vlmflow.files import MARKER, read_json, read_manifest, staged_directory, write_json, write_manifest, write_text


def artefact(folder: Path) -> Path:
    """A folder that a stage wrote."""
    with staged_directory(folder) as directory:
        (directory / "old").write_text("old")
        write_manifest(directory)
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {MARKER}


def test_text_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    with pytest.raises(OSError):
        write_text(tmp_path / "folder", "text")
    assert names(tmp_path) == {"folder"}


def test_half_a_character_is_written_as_a_question_mark(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"id": "r\ud800", "whole": "\U0001f600"})
    assert read_json(tmp_path / "a.json") == {"id": "r?", "whole": "\U0001f600"}


def test_a_failed_block_leaves_what_stood_there(tmp_path: Path) -> None:
    target = artefact(tmp_path / "artefact")
    with pytest.raises(ZeroDivisionError), staged_directory(target) as directory:
        (directory / "new").write_text("half")
        raise ZeroDivisionError
    assert names(tmp_path) == {"artefact"}
    assert names(target) == {"old", "manifest.json"}


def test_what_is_left_of_an_unwanted_result_goes_first(tmp_path: Path) -> None:
    """Snakemake removes the manifest before it makes something again; the rest must not look like a result."""
    target = artefact(tmp_path / "artefact")
    (target / "manifest.json").unlink()
    with pytest.raises(ZeroDivisionError), staged_directory(target):
        raise ZeroDivisionError
    assert not target.exists()


def test_a_finished_block_replaces_the_whole(tmp_path: Path) -> None:
    target = artefact(tmp_path / "artefact")
    with staged_directory(target) as directory:
        (directory / "new").write_text("whole")
    assert names(target) == {"new"}


def test_a_linked_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(artefact(tmp_path / "elsewhere"))
    artefact(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()


def test_files_that_no_stage_wrote_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="has files that no stage wrote"), staged_directory(tmp_path):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"), staged_directory(tmp_path / "file"):
        pass
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("output", ["models/base", "models", "models/base/official"])
def test_an_output_never_takes_the_place_of_an_input(tmp_path: Path, output: str) -> None:
    manifest = artefact(tmp_path / "models" / "base") / "manifest.json"
    artefact(tmp_path / "models" / "base" / "official")
    (tmp_path / "models" / MARKER).touch()
    with (
        pytest.raises(UserError, match="would take the place of an input"),
        staged_directory(tmp_path / output, manifest),
    ):
        pass
    assert manifest.exists()


@pytest.mark.parametrize("content", ["[]", "5", "{}"])
def test_another_file_is_no_manifest(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match="no manifest of a stage"):
        read_manifest(tmp_path / "config.json")
    with pytest.raises(UserError, match="a folder, not a file"):
        read_manifest(tmp_path)


def test_the_hash_is_of_the_content_not_of_time_or_provenance(tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("1")
    first = write_manifest(tmp_path)["hash"]
    (tmp_path / "provenance.json").write_text("{}")
    os.utime(tmp_path / "weights", (0, 0))
    assert write_manifest(tmp_path)["hash"] == first
    (tmp_path / "weights").write_text("2")
    assert write_manifest(tmp_path)["hash"] != first


def test_only_its_own_telling_files_are_left_out_of_a_manifest(tmp_path: Path) -> None:
    names = ("manifest.json", "provenance.json", "metrics.jsonl")
    (tmp_path / "sub").mkdir()
    for name in names:
        (tmp_path / name).write_text("{}")
        (tmp_path / "sub" / name).write_text("{}")
    manifest = write_manifest(tmp_path)
    assert set(manifest["files"]) == {f"sub/{name}" for name in names}
    (tmp_path / "sub" / "metrics.jsonl").write_text("[]")
    assert write_manifest(tmp_path)["hash"] != manifest["hash"]


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_text("12")])
def test_a_damaged_artefact_is_named(tmp_path: Path, damage: object) -> None:
    (tmp_path / "weights").write_text("1")
    write_manifest(tmp_path)
    damage(tmp_path / "weights")  # type: ignore[operator]
    with pytest.raises(UserError, match=r"weights.*(missing|2 bytes instead of 1)"):
        read_manifest(tmp_path / "manifest.json")


def test_broken_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(UserError, match=r"x\.json: not valid JSON"):
        read_json(tmp_path / "x.json")


def test_json_is_readable(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"question": "这是什么？"})
    assert "这是什么？" in (tmp_path / "x.json").read_text(encoding="utf-8")
