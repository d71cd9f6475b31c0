"""A file of the user's own that changed is noticed; one that was only touched or copied is not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from vlmflow.plan.own_files import OwnFiles


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "1.png").write_bytes(b"one")
    (folder / "answers.csv").write_bytes(b"1.png,yes")
    return folder


def state(mine: Path) -> str:
    """As a new call of snakemake sees it."""
    return OwnFiles(mine.parent / "kept").state([str(mine)])


def run(mine: Path) -> str:
    """The state of a run that ended."""
    own_files = OwnFiles(mine.parent / "kept")
    before = own_files.state([str(mine)])
    own_files.remember()
    return before


def touch(mine: Path) -> None:
    for path in [path for path in mine.rglob("*") if path.is_file()]:
        os.utime(path, (1, 1))


def test_content_names_and_numbers_count(mine: Path) -> None:
    states = [run(mine)]
    (mine / "answers.csv").write_bytes(b"1.png,not")  # of the same length
    states.append(run(mine))
    (mine / "answers.csv").rename(mine / "answer.csv")
    states.append(run(mine))
    (mine / "a" / "1.png").unlink()
    states.append(run(mine))
    assert len(set(states)) == 4


def test_dates_alone_count_only_before_a_first_run(mine: Path) -> None:
    before = state(mine)
    touch(mine)
    after = run(mine)
    assert before != after
    shutil.copytree(mine, mine.parent / "copy")
    shutil.rmtree(mine)
    (mine.parent / "copy").rename(mine)
    touch(mine)
    assert state(mine) == after


def test_a_touched_file_is_read_once(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = run(mine)
    touch(mine)
    assert state(mine) == before
    monkeypatch.setattr("vlmflow.plan.own_files.sha256_file", None)
    assert state(mine) == before


def test_a_file_that_changed_during_the_run_is_not_taken_for_what_was_read(mine: Path) -> None:
    own_files = OwnFiles(mine.parent / "kept")
    before = own_files.state([str(mine)])
    (mine / "answers.csv").write_bytes(b"1.png,not")
    own_files.remember()
    assert state(mine) != before


def test_folders_are_followed_through_links_and_loops_end(mine: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "2.png").write_bytes(b"two")
    (mine / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(mine)
    (mine / "nowhere").symlink_to("missing")
    before = run(mine)
    touch(elsewhere)
    assert state(mine) == before
    (elsewhere / "2.png").write_bytes(b"2")
    assert state(mine) != before


def test_a_single_file_and_nothing_at_all(mine: Path) -> None:
    file = mine / "answers.csv"
    before, missing = run(file), state(mine / "missing")
    touch(mine)
    assert state(file) == before
    file.write_bytes(b"1.png,not")
    assert len({before, missing, state(file)}) == 3


def test_what_changed_is_named(mine: Path) -> None:
    own_files = OwnFiles(mine.parent / "kept")
    assert own_files.changed(str(mine)) == []
    run(mine)
    (mine / "a" / "1.png").write_bytes(b"another")
    (mine / "new.png").touch()
    (mine / "answers.csv").unlink()
    assert own_files.changed(str(mine)) == ["a/1.png", "answers.csv", "new.png"]
