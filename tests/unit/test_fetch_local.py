"""Files of the user's own and of installed packages: taken without being changed, linked out of or imported."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from vlmflow.errors import UserError
from vlmflow.fetch import fetch_source, local
from vlmflow.files import read_manifest
from vlmflow.plan import Plan
from vlmflow.plan.own_files import OwnFiles


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    for name in ("a.json", "images/1.png", "images/2.png", "notes.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def fetched(tmp_path: Path, **config: Any) -> set[str]:
    output = tmp_path / "results" / "source" / "manifest.json"
    fetch_source(config, output)
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["source"]
    return set(read_manifest(output)["files"])


ALL = {"a.json", "images/1.png", "images/2.png", "notes.txt"}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, ALL),
        ({"patterns": ["*.png"]}, {"images/1.png", "images/2.png"}),
        ({"patterns": ["images/"]}, {"images/1.png", "images/2.png"}),
        ({"patterns": ["*.json"], "files": {"images/2.png": None}}, {"a.json", "images/2.png"}),
        ({"files": {"notes.txt": None}}, {"notes.txt"}),
    ],
)
def test_a_folder_whole_or_in_part(mine: Path, tmp_path: Path, config: dict[str, Any], expected: set[str]) -> None:
    assert fetched(tmp_path, path=str(mine), **config) == expected
    assert {path.relative_to(mine).as_posix() for path in mine.rglob("*") if path.is_file()} == ALL


def test_one_file(mine: Path, tmp_path: Path) -> None:
    assert fetched(tmp_path, path=str(mine / "a.json")) == {"a.json"}


@pytest.mark.parametrize("linked", [True, False])
def test_it_is_a_hard_link_or_else_a_copy(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linked: bool
) -> None:
    if not linked:
        monkeypatch.setattr(local.os, "link", lambda *_: (_ for _ in ()).throw(OSError("other file system")))
    fetched(tmp_path, path=str(mine))
    copy = tmp_path / "results" / "source" / "images" / "1.png"
    assert copy.samefile(mine / "images" / "1.png") is linked
    assert copy.read_text() == "images/1.png"


def test_links_inside_are_followed_and_links_out_refused(mine: Path, tmp_path: Path) -> None:
    (mine / "same.png").symlink_to("images/1.png")
    assert fetched(tmp_path, path=str(mine)) == {*ALL, "same.png"}
    assert not (tmp_path / "results" / "source" / "same.png").is_symlink()
    (tmp_path / "secret").write_text("secret")
    (mine / "out").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="out: a link out of the folder"):
        fetched(tmp_path, path=str(mine))
    assert fetched(tmp_path, path=str(mine), patterns=["*.json"]) == {"a.json"}


def test_a_linked_folder_is_not_left_out_in_silence(mine: Path, tmp_path: Path) -> None:
    (mine / "more").symlink_to(mine / "images")
    with pytest.raises(UserError, match="more: a link to a folder"):
        fetched(tmp_path, path=str(mine))


def test_a_device_is_refused(mine: Path, tmp_path: Path) -> None:
    os.mkfifo(mine / "pipe")
    with pytest.raises(UserError, match="pipe: no regular file"):
        fetched(tmp_path, path=str(mine))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"path": "{mine}/nothing"}, "no such file or folder"),
        ({"path": "{mine}", "patterns": ["*.jpg"]}, r"no file of \S+ matches \*\.jpg[\s\S]*it has a\.json"),
        ({"path": "{mine}", "files": {"b.json": None}}, r"no such file in[\s\S]*did you mean a\.json\?"),
        ({"path": "{mine}", "files": {"a.json": "0" * 64}}, "SHA-256 is"),
        ({"path": "{mine}/.."}, "contains the results"),
        ({"package": "no-such-package", "files": {"x": None}}, "package no-such-package is not installed"),
        ({"package": "jsonschema", "files": {}}, "no file of jsonschema is named"),
        ({"package": "jsonschema", "files": {"jsonschema/x.py": None}}, "no such file in jsonschema"),
    ],
)
def test_what_cannot_be_had_is_said(mine: Path, tmp_path: Path, config: dict[str, Any], message: str) -> None:
    named = {key: value.format(mine=mine) if isinstance(value, str) else value for key, value in config.items()}
    with pytest.raises(UserError, match=message):
        fetched(tmp_path, **named)
    assert not (tmp_path / "results" / "source").exists()


def test_a_file_named_as_the_manifest_is_refused(mine: Path, tmp_path: Path) -> None:
    (mine / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match=r"cannot hold a file manifest\.json"):
        fetched(tmp_path, path=str(mine))


def test_members_of_an_installed_package(tmp_path: Path) -> None:
    files = fetched(tmp_path, package="pytest", files={"pytest/__main__.py": None}, patterns=["*/licenses/*"])
    assert "pytest/__main__.py" in files
    assert len(files) > 1
    manifest = read_manifest(tmp_path / "results" / "source" / "manifest.json")
    assert manifest["source"] == {"package": "pytest", "version": pytest.__version__}


def test_the_rule_runs_again_when_the_path_changes(mine: Path) -> None:
    def state(path: Path) -> str:
        return Plan.source_files(plan(path), "s")

    def plan(path: Path) -> Plan:
        bare = object.__new__(Plan)
        bare.config = {"sources": {"s": {"path": str(path)}, "u": {"url": "file:///x"}}}
        bare.own_files = OwnFiles(mine.parent / "kept")
        return bare

    before, one, missing = state(mine), state(mine / "a.json"), state(mine / "nothing")
    assert state(mine) == before
    (mine / "a.json").write_text("changed")
    (mine / "images" / "3.png").write_text("new")
    assert len({before, one, missing, state(mine), state(mine / "a.json")}) == 5
    assert Plan.source_files(plan(mine), "u") == ""
