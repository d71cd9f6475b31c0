"""Tasks of VLMEvalKit as data sets: what is asked is what VLMEvalKit asks, and a hostile file is told, not run."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pictures
from test_data_validate import config
from test_generate_pictures import animation, bomb

from vlmflow.data.records import read_records
from vlmflow.data.validate import validate_dataset
from vlmflow.errors import UserError
from vlmflow.field.tables import write_rows
from vlmflow.files import read_manifest, write_manifest
from vlmflow.prepare import prepare_source

ASKED = "Question: Which?\nOptions:\nA. cat\nB. dog\nPlease select the correct answer from the options above. \n"


def picture(colour: str = "red", form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Pictures.new("RGB", (40, 30), colour).save(stream, form)
    return stream.getvalue()


def base64_of(content: bytes) -> str:
    return base64.b64encode(content).decode()


def row(index: Any = 1, **changed: Any) -> dict[str, Any]:
    choices = {"question": "Which?", "A": "cat", "B": "dog", "answer": "B", "category": "animals"}
    return {"index": index, "image": base64_of(picture()), **choices, **changed}


def prepare(folder: Path, rows: list[dict[str, Any]], name: str = "Task.tsv") -> list[dict[str, Any]]:
    source, output = folder / "source", folder / "prepared" / "manifest.json"
    write_rows(source / name, rows)
    write_manifest(source)
    prepare_source("vlmevalkit", source / "manifest.json", output)
    read_manifest(output, verify=True)
    records: list[dict[str, Any]] = json.loads((output.parent / name.replace(".tsv", ".json")).read_text("utf-8"))
    return records


def refused(folder: Path, *rows: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        prepare(folder, list(rows))
    assert not (folder / "prepared").exists()
    return str(caught.value)


def test_a_choice_is_asked_as_vlmevalkit_asks_it(tmp_path: Path) -> None:
    (record,) = prepare(tmp_path, [row()])
    (image,) = record.pop("image")
    assert (tmp_path / "prepared" / image).read_bytes() == picture()
    assert record == {
        "id": "1",
        "category": "animals",
        "conversations": [{"from": "human", "value": f"<image>\n{ASKED}"}, {"from": "gpt", "value": "B"}],
        "answers": ["B. dog", "dog"],
    }


def test_hint_further_options_and_an_option_that_says_none(tmp_path: Path) -> None:
    (record,) = prepare(tmp_path, [row(hint="Think.", C="None", D="")])
    text = record["conversations"][0]["value"]
    assert text.startswith("<image>\nHint: Think.\nQuestion: Which?\n") and "\nC. None\nPlease" in text


def test_open_questions_and_lists_of_answers(tmp_path: Path) -> None:
    (record,) = prepare(tmp_path, [row(A="", B="", answer="['12', \"12 l\"]")])
    assert record["conversations"][0]["value"] == "<image>\nWhich?"
    assert (record["conversations"][1]["value"], record["answers"]) == ("12", ["12 l"])


@pytest.mark.parametrize("answer", ["[10, 20, 110, 220]", "[1]", "[[1, 2], [3, 4]]"])
def test_a_box_or_numbers_are_one_answer(tmp_path: Path, answer: str) -> None:
    (record,) = prepare(tmp_path, [row(A="", B="", answer=answer)])
    assert (record["conversations"][1]["value"], record.get("answers")) == (answer, None)


def test_several_pictures_and_their_places(tmp_path: Path) -> None:
    both = str([base64_of(picture("red")), base64_of(picture("blue", "JPEG"))])
    rows = [row(1, image=both), row(2, image=both, question="Is <image 2> like <image 1> or <image 2>?")]
    first, second = prepare(tmp_path, rows)
    assert [name.rpartition(".")[2] for name in first["image"]] == ["png", "jpg"]
    assert first["conversations"][0]["value"].startswith("<image>\n<image>\nQuestion")
    assert second["image"] == [first["image"][1], first["image"][0], first["image"][1]]
    assert "Is <image> like <image> or <image>?" in second["conversations"][0]["value"]
    assert len(list((tmp_path / "prepared" / "images").iterdir())) == 2


def test_a_row_may_name_the_row_with_its_picture(tmp_path: Path) -> None:
    records = prepare(tmp_path, [row(1000001, image="1"), row(1)])
    assert [record["id"] for record in records] == ["1000001", "1"]
    assert records[0]["image"] == records[1]["image"]


def test_pictures_by_name(tmp_path: Path) -> None:
    (tmp_path / "source" / "pictures").mkdir(parents=True)
    (tmp_path / "source" / "pictures" / "a.png").write_bytes(picture())
    (record,) = prepare(tmp_path, [{**row(image_path="pictures/a.png"), "image": ""}])
    assert (tmp_path / "prepared" / record["image"][0]).read_bytes() == picture()


def test_rows_without_a_picture_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        assert len(prepare(tmp_path, [row(1), row(2, image="")])) == 1
    assert "1 rows without a picture are left out" in caplog.text


def test_the_data_stage_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    colours = ("red", "green", "blue", "white", "black", "grey", "brown", "pink")
    prepare(tmp_path, [row(index, image=base64_of(picture(colour))) for index, colour in enumerate(colours)])
    node = config(annotations="Task.json", images=".", split={"validation": 0.0, "test": 0.5, "seed": 0})
    validate_dataset(node, Path("prepared"), [], tmp_path / "cache.sqlite", Path("data/manifest.json"))
    records = [*read_records(Path("data/train.jsonl")), *read_records(Path("data/test.jsonl"))]
    assert sorted(record.id for record in records) == [str(index) for index in range(len(colours))]
    assert all(record.turns[0].text == f"<image>\n{ASKED}" for record in records)
    assert all(record.answers == ("B. dog", "dog") for record in records)


# --- bad files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (base64_of(bomb(50_000)), "too many pixels"), (base64_of(bomb(11_000)), "too many pixels"),
        (base64_of(b"<html>" * 50), "not a picture"), (base64_of(b"%!PS-Adobe-3.0 EPSF-3.0\n" * 5), "not a picture"),
        ("\u00e9" * 100, "not base64"), ("abc!" * 50, "not base64"), (base64_of(animation()), "several frames"),
        (base64_of(picture()[:-30]), "picture cannot be decoded"), ("77", "neither a picture nor the index"),
        (str([base64_of(picture()), "aGk="]), "not a picture"), ("[" * 5000, "not base64"),
    ],
)  # fmt: skip
def test_what_is_no_picture_is_told_with_its_row(tmp_path: Path, image: str, reason: str) -> None:
    message = refused(tmp_path, row(1), row(241, image=image))
    assert f"Task.tsv, record row 2 (index 241), field image: {reason}" in message
    assert "1 rows cannot be used" in message


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "missing.png", "link.png"])
def test_pictures_outside_the_source_are_not_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "secret.png").write_bytes(picture())
    (tmp_path / "source" / "link.png").symlink_to(tmp_path / "secret.png")
    message = refused(tmp_path, {**row(image_path=name), "image": ""})
    assert "record row 1 (index 1), field image_path: " in message


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"answer": ""}, r"field answer: no answer[\s\S]*DEV or VAL"),
        ({"question": "Is it <image 3>?"}, r"field question: no such picture: <image 3> of 1"),
        ({"index": 1}, r"field index: index 1 stands twice"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare(tmp_path, [row(1), row(2) | changed])


@pytest.mark.parametrize("missing", ["index", "question", "answer", "image"])
def test_a_table_without_a_column(tmp_path: Path, missing: str) -> None:
    assert f"no column {missing}" in refused(tmp_path, {name: cell for name, cell in row().items() if name != missing})


def test_a_source_without_a_table(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    write_manifest(tmp_path)
    with pytest.raises(UserError, match=r"no \.tsv file"):
        prepare_source("vlmevalkit", tmp_path / "manifest.json", tmp_path / "out" / "manifest.json")


def test_many_bad_rows_are_counted(tmp_path: Path) -> None:
    message = refused(tmp_path, *(row(index, image="aGk=" * 30) for index in range(25)))
    assert "25 rows cannot be used" in message and "... and 5 more" in message
