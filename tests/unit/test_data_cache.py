"""Only new and changed pictures are decoded again, and nothing that is wrong with the cache stops a run."""

from __future__ import annotations

import logging
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pictures

from vlmflow.data import images
from vlmflow.data.cache import Known, PictureCache
from vlmflow.data.images import check_images
from vlmflow.data.pictures import ImageFacts
from vlmflow.errors import Problem

LIMIT = 10_000


def make(folder: Path, numbers: range) -> list[str]:
    for number in numbers:
        Pictures.new("RGB", (1 + number % 50, 3), (number % 256, 1, 2)).save(folder / f"{number}.png")
    return [f"{number}.png" for number in numbers]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that are decoded, in any order."""
    seen: list[str] = []
    original = images._decode

    def counted(content: bytes, name: str, *rest: Any) -> ImageFacts | Problem:
        seen.append(name)
        return original(content, name, *rest)

    monkeypatch.setattr(images, "_decode", counted)
    return seen


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    return tmp_path / "pictures"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "results" / "cache" / "pictures.sqlite"


def test_only_added_pictures_are_decoded(root: Path, cache: Path, decoded: list[str]) -> None:
    names = make(root, range(300))
    first = check_images(root, names, LIMIT, cache)
    assert len(decoded) == 300
    decoded.clear()
    added = make(root, range(300, 400))
    second = check_images(root, names + added, LIMIT, cache)
    assert sorted(decoded) == sorted(added)
    assert {name: second[name] for name in names} == first
    assert list(second) == names + added
    decoded.clear()
    assert check_images(root, names + added, LIMIT, cache) == second
    assert decoded == []


def test_changed_pictures_are_decoded_again(root: Path, cache: Path, decoded: list[str]) -> None:
    make(root, range(3))
    check_images(root, ["0.png", "1.png", "2.png"], LIMIT, cache)
    decoded.clear()
    os.utime(root / "0.png", ns=(1, 1))
    Pictures.new("RGB", (40, 40)).save(root / "1.png")
    found = check_images(root, ["0.png", "1.png", "2.png"], LIMIT, cache)
    assert sorted(decoded) == ["0.png", "1.png"]
    assert isinstance(found["1.png"], ImageFacts)
    assert found["1.png"].width == 40


def test_other_content_of_the_same_size_and_time_goes_unseen(root: Path, cache: Path, decoded: list[str]) -> None:
    """What the documentation says."""
    make(root, range(1))
    before = check_images(root, ["0.png"], LIMIT, cache)
    state = (root / "0.png").stat()
    (root / "0.png").write_bytes(b"x" * state.st_size)
    os.utime(root / "0.png", ns=(state.st_atime_ns, state.st_mtime_ns))
    decoded.clear()
    assert check_images(root, ["0.png"], LIMIT, cache) == before
    assert decoded == []


def test_bad_pictures_are_looked_at_every_time(root: Path, cache: Path, decoded: list[str]) -> None:
    (root / "0.png").write_bytes(b"no picture")
    for _ in range(2):
        assert isinstance(check_images(root, ["0.png", "gone.png"], LIMIT, cache)["0.png"], Problem)
    assert decoded == ["0.png", "0.png"]
    make(root, range(1))
    check_images(root, ["0.png"], LIMIT, cache)
    (root / "0.png").unlink()
    assert isinstance(check_images(root, ["0.png"], LIMIT, cache)["0.png"], Problem)


def test_a_lower_limit_refuses_what_was_good(root: Path, cache: Path) -> None:
    Pictures.new("RGB", (20, 20)).save(root / "a.png")
    assert isinstance(check_images(root, ["a.png"], 400, cache)["a.png"], ImageFacts)
    found = check_images(root, ["a.png"], 399, cache)["a.png"]
    assert isinstance(found, Problem)
    assert found.reason.startswith("too many pixels")
    assert isinstance(check_images(root, ["a.png"], 400, cache)["a.png"], ImageFacts)


def test_other_checks_forget_everything(
    root: Path, cache: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = make(root, range(2))
    check_images(root, names, LIMIT, cache)
    monkeypatch.setattr(images, "CHECKS", images.CHECKS + 1)
    decoded.clear()
    for _ in range(2):
        check_images(root, names, LIMIT, cache)
    assert len(decoded) == 2


def test_a_killed_run_goes_on(root: Path, cache: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_BATCH", 10)
    names = make(root, range(100))
    written = PictureCache.write

    def killed(self: PictureCache, news: dict[str, Known]) -> None:
        if any(name.endswith("/50.png") for name in news):
            raise KeyboardInterrupt
        written(self, news)

    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(PictureCache, "write", killed)
        check_images(root, names, LIMIT, cache)
    decoded.clear()
    check_images(root, names, LIMIT, cache)
    assert sorted(decoded) == sorted(names[50:])


def foreign(path: Path) -> None:
    with sqlite3.connect(path) as file:
        file.execute("CREATE TABLE pictures (x)")
    file.close()


def halved(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))


@pytest.mark.parametrize(
    "spoil",
    [lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"no database" * 999), foreign, halved],
    ids=["empty", "text", "foreign", "damaged"],
)
def test_another_or_a_damaged_file_is_replaced(root: Path, cache: Path, decoded: list[str], spoil: Any) -> None:
    names = make(root, range(20))
    first = check_images(root, names, LIMIT, cache)
    if spoil is foreign:
        cache.unlink()
    spoil(cache)
    for _ in range(2):
        assert check_images(root, names, LIMIT, cache) == first
    decoded.clear()
    assert check_images(root, names, LIMIT, cache) == first
    assert decoded == []


def test_a_place_that_cannot_be_written_only_warns(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = make(root, range(600))
    (tmp_path / "file").touch()
    assert len(check_images(root, names, LIMIT, tmp_path / "file" / "cache.sqlite")) == 600
    assert ["not remembered" in message for message in caplog.messages] == [True]


def test_a_locked_file_only_warns(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    known = {"/a.png": Known(1, 2, ImageFacts(3, 4, b"s" * 32, b"p" * 32, 2**64 - 1))}
    with PictureCache(cache, 1) as first:
        first.write(known)
    other = sqlite3.connect(cache)
    other.execute("BEGIN IMMEDIATE")
    with PictureCache(cache, 1, wait=0.01) as second:
        assert second.read(["/a.png", "/b.png"]) == known
        second.write(known)
        second.write(known)
    other.close()
    assert len(caplog.messages) == 1
    assert "locked" in caplog.text


def test_odd_names(cache: Path) -> None:
    name = "/\ud800\0'\n"
    with PictureCache(cache, 1) as file:
        file.write({name: Known(1, 2, ImageFacts(3, 4, b"s" * 32, b"p" * 32, 0))})
        assert list(file.read([name])) == [name]
