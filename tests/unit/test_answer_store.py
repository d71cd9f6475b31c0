"""Answers that were given are on the disk, whatever happened to the process that got them."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from repository import ENVIRONMENT, ROOT
from vlmflow.errors import UserError
from vlmflow.evaluation.answers import Answer
from vlmflow.evaluation.store import AnswerStore

SETTINGS = {"inputs": {"model": "m"}, "generation": {"max_new_tokens": 8}}


def answer(text: str = "red") -> Answer:
    return Answer(text, "stop", 3, "hash")


def kept(folder: Path, settings: dict[str, object] = SETTINGS) -> dict[str, Answer]:
    """What a run with these settings would find."""
    return AnswerStore(folder, settings, "reader").known


def fill(folder: Path, writer: str = "e.c.1-of-1", **texts: str) -> Path:
    """Add answers, one group each; returns the file."""
    with AnswerStore(folder, SETTINGS, writer) as store:
        for key, text in texts.items():
            store.add({key: answer(text)})
        return store.folder / f"{writer}.jsonl"


def test_what_was_added_is_there_again_in_the_same_words(tmp_path: Path) -> None:
    texts = {"a": "", "b": "line\nline\r\u2028\x00", "c": "红色 🟥 \x1b[31m", "d": "x" * 100_000}
    file = fill(tmp_path, **texts)
    assert kept(tmp_path) == {key: answer(text) for key, text in texts.items()}
    assert len(file.read_bytes().splitlines()) == len(texts)
    assert json.loads((file.parent / "settings.json").read_text()) == SETTINGS


@pytest.mark.parametrize("cut", [1, 2, 20, 40])
def test_a_torn_last_line_is_dropped_and_written_over(tmp_path: Path, cut: int) -> None:
    file = fill(tmp_path, a="red", b="green")
    whole = file.read_bytes()
    file.write_bytes(whole[:-cut])
    assert kept(tmp_path) == {"a": answer("red")}
    fill(tmp_path, b="green")
    assert file.read_bytes() == whole


@pytest.mark.parametrize("garbage", [b"{", b"\x00\x00\x00", b"\xff\xfe", b"[1]", b'{"a": {"prediction": 1}}', b""])
def test_a_line_of_garbage_costs_itself_only(tmp_path: Path, garbage: bytes) -> None:
    file = fill(tmp_path, a="red")
    file.write_bytes(file.read_bytes() + garbage + b"\n")
    fill(tmp_path, b="green")
    assert kept(tmp_path) == {"a": answer("red"), "b": answer("green")}


def test_garbage_without_an_end_is_removed(tmp_path: Path) -> None:
    file = fill(tmp_path, a="red")
    whole = file.read_bytes()
    file.write_bytes(whole + b"\x00" * 5000)
    assert kept(tmp_path) == {"a": answer("red")}
    fill(tmp_path)
    assert file.read_bytes() == whole


def test_two_writers_write_to_files_of_their_own_and_know_each_others_answers(tmp_path: Path) -> None:
    with AnswerStore(tmp_path, SETTINGS, "e.c.1-of-2") as one, AnswerStore(tmp_path, SETTINGS, "e.c.2-of-2") as other:
        for index in range(20):
            one.add({f"one {index}": answer()})
            other.add({f"other {index}": answer(), "both": answer("the same")})
        assert len(one.known) == 20
    assert len(kept(tmp_path)) == 41


def test_one_writer_reads_while_the_other_is_in_the_middle_of_a_line(tmp_path: Path) -> None:
    file = fill(tmp_path, a="red")
    half = file.read_bytes() + b'{"b": {"prediction": "gre'
    file.write_bytes(half)
    assert list(fill(tmp_path, "other.c.1-of-1", c="blue").parent.glob("*.jsonl"))
    assert file.read_bytes() == half, "another process is writing it"


@pytest.mark.parametrize(
    "settings", [{}, {**SETTINGS, "code": "x"}, {**SETTINGS, "generation": {"max_new_tokens": 9}}], ids=str
)
def test_other_settings_share_nothing(tmp_path: Path, settings: dict[str, object]) -> None:
    fill(tmp_path, a="red")
    assert kept(tmp_path, settings) == {}
    assert kept(tmp_path, dict(reversed(SETTINGS.items()))) == {"a": answer("red")}


def test_halves_of_characters_become_question_marks(tmp_path: Path) -> None:
    with AnswerStore(tmp_path, SETTINGS, "e") as store:
        store.add({"a": answer("\ud83d red \udfff 🟥")})
        assert store.known == kept(tmp_path) == {"a": answer("? red ? 🟥")}


def fill_disk(folder: Path) -> tuple[str, list[str]]:
    """Writes answers where a file may have 1,000 bytes: the error, and what the store knows then."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    store = AnswerStore(folder, SETTINGS, "e")
    try:
        with store:
            for index in range(10):
                store.add({str(index): answer("x" * 200)})
    except UserError as error:
        return str(error), list(store.known)
    return "", list(store.known)


def test_a_full_disk_is_one_clear_error_and_what_was_kept_stays(tmp_path: Path) -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as another:  # the limit would be this one's too
        message, known = another.submit(fill_disk, tmp_path).result()
    assert re.search(r"e\.jsonl: cannot keep answers: .*\n    -> make room on the disk", message)
    assert list(kept(tmp_path)) == known == ["0", "1", "2"]


WRITER = """
import sys; from pathlib import Path
from vlmflow.evaluation.answers import Answer
from vlmflow.evaluation.store import AnswerStore
with AnswerStore(Path(sys.argv[1]), {}, "e") as store:
    for index in range(10 ** 6):
        store.add({f"{len(store.known)}": Answer("x" * 3000, "stop", 1, "")})
        print(len(store.known), flush=True)
"""


def test_what_was_told_as_kept_is_there_after_kills(tmp_path: Path) -> None:
    environment, told = {**ENVIRONMENT, "PYTHONPATH": str(ROOT / "workflow")}, 0
    for count in (1, 30, 100):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, tmp_path], env=environment, stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        for _ in range(count):
            told = int(writer.stdout.readline())
        os.kill(writer.pid, signal.SIGKILL)
        writer.communicate()
        assert len(kept(tmp_path, {})) >= told
    assert told > 130
