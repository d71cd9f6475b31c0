"""Artefacts are whole or absent, and a manifest stands for their content."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vlmflow.errors import UserError
from vlmflow.files import read_json, read_manifest, staged_directory, write_json, write_manifest


def test_a_failed_block_leaves_what_stood_there(tmp_path: Path) -> None:
    target = tmp_path / "artefact"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(ZeroDivisionError), staged_directory(target) as directory:
        (directory / "new").write_text("half")
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.rglob("*")] == ["artefact", "old"]


def test_a_finished_block_replaces_the_whole(tmp_path: Path) -> None:
    target = tmp_path / "artefact"
    target.mkdir()
    (target / "old").write_text("old")
    with staged_directory(target) as directory:
        (directory / "new").write_text("whole")
    assert [path.name for path in target.iterdir()] == ["new"]


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
