"""Downloads and base models are made once for all workflows that name the same store."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llava_parts import NODE, make_language, make_vision
from vlmflow import links
from vlmflow.errors import UserError
from vlmflow.fetch import fetch_source
from vlmflow.fetch.names import pinned
from vlmflow.files import read_manifest, staged_directory, write_manifest
from vlmflow.housekeeping import sizes
from vlmflow.housekeeping import store as store_module
from vlmflow.housekeeping.store import shared
from vlmflow.models.build import build_model

KEY = {"config": {"a": 1}, "code": "0"}


class Maker:
    """A stage; ``made`` counts how often it worked."""

    def __init__(self, output: Path, content: bytes = b"weights") -> None:
        self.output, self.content, self.made = output, content, 0

    def __call__(self) -> None:
        self.made += 1
        with staged_directory(self.output.parent) as folder:
            (folder / "deep").mkdir()
            (folder / "deep" / "file").write_bytes(self.content)
            (folder / "provenance.json").write_text("{}")
            write_manifest(folder, family="x")

    def run(self, store: Path | None, key: dict[str, Any] = KEY) -> int:
        """How often it has worked once it has run; what there is must be whole."""
        shared(store, "models", key, self.output, self)
        assert read_manifest(self.output, verify=True)["family"] == "x"
        return self.made


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def makers(tmp_path: Path) -> list[Maker]:
    """The same stage of several workflows."""
    return [Maker(tmp_path / str(number) / "results" / "manifest.json") for number in range(3)]


def entry(store: Path) -> Path:
    """The only one there is, partly written ones included."""
    (path,) = (store / "models").iterdir()
    return path


def inode(path: Path) -> int:
    return path.stat().st_ino


def test_made_once(store: Path, makers: list[Maker]) -> None:
    assert [maker.run(store) for maker in makers] == [1, 0, 0]
    files = [maker.output.parent / "deep" / "file" for maker in makers]
    assert len({inode(file) for file in files}) == 1
    assert files[1].stat().st_mode & 0o222 == 0, "a job could write into the store"
    manifests = [maker.output for maker in makers]
    assert manifests[0].read_bytes() == manifests[1].read_bytes()
    assert len({inode(path) for path in manifests}) == 3, "snakemake sets their times"
    assert os.access(manifests[1], os.W_OK)
    assert manifests[1].stat().st_mtime_ns > manifests[0].stat().st_mtime_ns


def test_another_key_or_no_store(store: Path, makers: list[Maker]) -> None:
    assert makers[0].run(store) == 1
    assert makers[1].run(store, {**KEY, "code": "1"}) == 1
    assert makers[2].run(None) == 1
    assert len(list((store / "models").iterdir())) == 2


def test_an_older_result_is_replaced(store: Path, makers: list[Maker]) -> None:
    old = Maker(makers[1].output, b"old")
    old.run(None)
    assert [maker.run(store) for maker in makers[:2]] == [1, 0]
    assert (old.output.parent / "deep" / "file").read_bytes() == b"weights"


def test_files_of_the_user_stay(store: Path, makers: list[Maker]) -> None:
    makers[0].run(store)
    makers[1].output.parent.mkdir(parents=True)
    (makers[1].output.parent / "thesis.tex").touch()
    with pytest.raises(UserError, match="files that no stage wrote"):
        makers[1].run(store)


@pytest.mark.parametrize("damage", [b"weightz", b"weigh", None])
def test_a_damaged_entry_is_made_anew(
    store: Path, makers: list[Maker], damage: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    makers[0].run(store)
    file = entry(store) / "deep" / "file"
    file.unlink()
    if damage is not None:
        file.write_bytes(damage)
    assert [maker.run(store) for maker in makers[1:]] == [1, 0]
    assert "damaged in the store, and made anew" in caplog.text
    assert "delete" not in caplog.text, "there is nothing to do"
    assert file.read_bytes() == b"weights"


def test_a_killed_writer_leaves_nothing_to_be_found(
    store: Path, makers: list[Maker], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "chmod", killed)
        makers[0].run(store)
    assert makers[1].run(store) == 1


def test_the_faster_of_two(store: Path, makers: list[Maker]) -> None:
    first, second, _ = makers

    class Slow(Maker):
        def __call__(self) -> None:
            first.run(store)
            super().__call__()

    assert Slow(second.output).run(store) == 1
    assert inode(entry(store) / "deep" / "file") == inode(first.output.parent / "deep" / "file")


def test_another_file_system(store: Path, makers: list[Maker], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(links.os, "link", refuse)
    assert [maker.run(store) for maker in makers[:2]] == [1, 0]
    assert (makers[0].output.parent / "deep" / "file").stat().st_mode & 0o200, "only the store's copy is read-only"


def test_no_room_for_a_copy(store: Path, makers: list[Maker], monkeypatch: pytest.MonkeyPatch) -> None:
    makers[0].run(store)

    def full(source: Path, *_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(source))

    monkeypatch.setattr(store_module, "link_or_copy", full)
    with pytest.raises(UserError, match=f"{makers[1].output.parent}: no space left on the disk\n.*make room") as raised:
        makers[1].run(store)
    assert str(store) not in str(raised.value)
    assert not makers[1].output.parent.exists()


def test_too_large_for_another_file_system(store: Path, makers: list[Maker], monkeypatch: pytest.MonkeyPatch) -> None:
    makers[0].run(store)
    monkeypatch.setattr(sizes.shutil, "disk_usage", lambda _: SimpleNamespace(free=3))
    assert makers[1].run(store) == 0, "a link takes no space"
    monkeypatch.setattr(store_module, "_same_disk", lambda *_: False)
    with pytest.raises(UserError, match="7 B are to be written, and 3 B"):
        makers[2].run(store)


def test_a_store_that_cannot_be_written(tmp_path: Path, makers: list[Maker], caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    assert makers[0].run(tmp_path / "file" / "store") == 1
    assert "not kept in the store" in caplog.text


SHA256 = hashlib.sha256(b"content").hexdigest()


@pytest.mark.parametrize(
    ("config", "settled"),
    [
        ({"hub": "a/b", "revision": "c" * 40}, True),
        ({"hub": "a/b", "revision": "main"}, False),
        ({"modelscope": "a/b", "revision": None}, False),
        ({"url": "https://a/", "files": {"a": SHA256}}, True),
        ({"url": "https://a/", "files": {"a": SHA256, "b": None}}, False),
        ({"url": "https://a/", "files": {}}, False),
        ({"pypi": "a==1"}, True),
        ({"path": "data"}, False),
        ({"package": "a"}, False),
    ],
)
def test_what_is_shared(config: dict[str, Any], settled: bool) -> None:
    assert pinned(config) is settled


def test_a_download(tmp_path: Path, store: Path) -> None:
    there = tmp_path / "there"
    there.write_bytes(b"content")
    config = {"url": there.as_uri(), "files": {"there": SHA256}}
    outputs = [tmp_path / name / "manifest.json" for name in ("first", "second", "third")]
    fetch_source(config, outputs[0], store)
    there.unlink()
    fetch_source(config, outputs[1], store)
    assert outputs[0].read_text() == outputs[1].read_text()
    with pytest.raises(UserError):
        fetch_source({**config, "unpack": ["*.zip"]}, outputs[2], store)


def test_a_base_model(tmp_path: Path, store: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    language, vision = make_language(tmp_path / "language", "llama"), make_vision(tmp_path / "vision", "clip")
    config = {**NODE, "template": "vicuna", "language": str(language), "vision": str(vision)}
    first, second, third = (tmp_path / name / "manifest.json" for name in ("1", "2", "3"))
    build_model(config, first, store)
    (tmp_path / "language").rename(tmp_path / "moved")
    build_model({**config, "language": str(tmp_path / "moved")}, second, store)
    assert "taken from the store" in caplog.text
    assert second.read_text() == first.read_text()
    caplog.clear()
    (tmp_path / "moved" / "merges.txt").write_text("a b\n")
    build_model({**config, "language": str(tmp_path / "moved")}, third, store)
    assert "taken from the store" not in caplog.text
