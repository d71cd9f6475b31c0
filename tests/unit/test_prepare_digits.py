"""scikit-learn's digits as pictures and questions."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from vlmflow.errors import UserError
from vlmflow.files import read_manifest, write_manifest
from vlmflow.prepare import prepare_source
from vlmflow.prepare.digits import MEMBER

Source = Callable[[list[list[int]]], Path]
ROWS = [[index % 17, 16, *[0] * 62, index % 10] for index in range(15)]


@pytest.fixture
def source(tmp_path: Path) -> Source:
    def make(rows: list[list[int]]) -> Path:
        path = tmp_path / "raw" / MEMBER
        path.parent.mkdir(parents=True)
        path.write_bytes(gzip.compress("".join(",".join(map(str, row)) + "\n" for row in rows).encode()))
        write_manifest(tmp_path / "raw")
        return tmp_path / "raw" / "manifest.json"

    return make


def test_pictures_are_dark_on_white(source: Source, tmp_path: Path) -> None:
    prepare_source("digits", source(ROWS), tmp_path / "out" / "manifest.json")
    with Image.open(tmp_path / "out" / "images" / "0008.png") as picture:
        assert (picture.mode, picture.size) == ("L", (8, 8))
        assert [picture.getpixel((x, 0)) for x in range(3)] == [255 - round(8 * 255 / 16), 0, 255]
    files = read_manifest(tmp_path / "out" / "manifest.json")["files"]
    assert sorted(files) == [*(f"images/{i:04d}.png" for i in range(15)), "names.json", "questions.json"]


def test_every_picture_is_asked_for_its_name_and_one_of_three_questions(source: Source, tmp_path: Path) -> None:
    prepare_source("digits", source(ROWS), tmp_path / "out" / "manifest.json")
    names = json.loads((tmp_path / "out" / "names.json").read_text())
    assert names[7] == {
        "id": "digit-0007",
        "image": "images/0007.png",
        "category": "which digit",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat digit is this?"},
            {"from": "gpt", "value": "seven"},
        ],
    }
    questions = json.loads((tmp_path / "out" / "questions.json").read_text())
    asked = [(r["category"], r["conversations"][0]["value"], r["conversations"][1]["value"]) for r in questions]
    assert asked[3:6] == [
        ("which digit", "<image>\nWhat digit is this?", "three"),
        ("even or odd", "<image>\nIs this digit even or odd?", "even"),
        ("greater than four", "<image>\nIs this digit greater than four?", "yes"),
    ]
    assert [answer for category, _, answer in asked if category == "even or odd"] == [
        "odd",
        "even",
        "odd",
        "even",
        "odd",
    ]
    assert [answer for category, _, answer in asked if category == "greater than four"] == [
        "no",
        "yes",
        "yes",
        "no",
        "no",
    ]


@pytest.mark.parametrize("row", [[0] * 64, [*[0] * 64, 10], [17, *[0] * 63, 1], [-1, *[0] * 63, 1]])
def test_other_content_is_refused(source: Source, tmp_path: Path, row: list[int]) -> None:
    with pytest.raises(UserError, match=r"digits\.csv\.gz: cannot read the digits"):
        prepare_source("digits", source([*ROWS, row]), tmp_path / "out" / "manifest.json")
    assert not (tmp_path / "out").exists()


def test_an_unknown_preparation_names_the_known(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no preparation 'letters'\n.*there is: digits"):
        prepare_source("letters", tmp_path, tmp_path)
