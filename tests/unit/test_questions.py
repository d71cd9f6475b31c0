"""What a checkpoint is asked: the words, the pictures, the parts, and the keys under which answers are kept."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from PIL import Image as Pictures

from vlmflow.data.records import Image, Record, Turn, Video, write_records
from vlmflow.errors import UserError
from vlmflow.evaluation.questions import (
    Question,
    asked_turns,
    questions_of,
    read_evaluated,
    shard_of,
    shuffle_pictures,
)
from vlmflow.files import write_manifest

CONFIG = {"split": "test", "limit": None}
PROMPT = "Look.\n{question}\nOne word."


def image(name: str = "a", width: int = 4) -> Image:
    return Image(f"{name}.png", width, 3, f"hash of {name}")


def record(*turns: str, images: tuple[Image, ...] = (), **changed: Any) -> Record:
    """A conversation that begins with the user."""
    roles = ("user", "assistant") * len(turns)
    said = tuple(Turn(role, text) for role, text in zip(roles, turns, strict=False))
    return Record(**{"id": "r", "images": images, "turns": said, **changed})


def asked(question: str, prompt: str | None = PROMPT) -> str:
    return asked_turns(record(question, "x"), prompt)[-1].text


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What?", "Look.\nWhat?\nOne word."),
        ("<image>\nWhat?", "<image>\nLook.\nWhat?\nOne word."),
        ("<image>What?", "<image>Look.\nWhat?\nOne word."),
        ("<image>\n<image> \n What?", "<image>\n<image> \n Look.\nWhat?\nOne word."),
        ("Is <image> like <image>?", "Look.\nIs <image> like <image>?\nOne word."),
        ("What?\n<image>", "Look.\nWhat?\n<image>\nOne word."),
        ("<image>", "<image>Look.\n\nOne word."),
        ("  a {question} b ", "Look.\n  a {question} b \nOne word."),
        ("{0} \\1 %s", "Look.\n{0} \\1 %s\nOne word."),
    ],
)
def test_the_prompt_stands_around_the_question_and_after_its_first_pictures(question: str, expected: str) -> None:
    assert asked(question) == expected
    assert asked(question, None) == question


def test_only_the_last_question_is_framed_and_the_reference_is_not_told() -> None:
    asked_of = record("<image>\nFirst?", "A.", "Second?", "B.")
    assert asked_turns(asked_of, PROMPT) == (*asked_of.turns[:2], Turn("user", "Look.\nSecond?\nOne word."))
    system = Record("r", (), (Turn("system", "Be brief."), *record("Q?", "A.").turns))
    assert asked_turns(system, None) == system.turns[:-1]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_parts_have_every_question_once_and_are_as_long(count: int) -> None:
    questions = questions_of([record("Q?", "A.", id=f"r{index}") for index in range(5)], None, "model-x")
    parts = [shard_of(questions, f"{index}-of-{count}") for index in range(1, count + 1)]
    assert Counter(each.id for part in parts for each in part) == Counter(f"r{index}" for index in range(5))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def many() -> list[Record]:
    """Records with no, one and two pictures, and one that is alone with three."""
    made = [record("Q?", "A.", id=f"r{index}", images=tuple(image(f"{index}.{n}") for n in range(index % 3)))
            for index in range(30)]  # fmt: skip
    return [*made, record("Q?", "A.", id="alone", images=(image("x"),) * 3)]


def test_blind_shows_the_pictures_of_another_record() -> None:
    records = many()
    questions = questions_of(records, None, "converted-x+blind")
    for before, question in zip(records, questions, strict=True):
        assert question.id == before.id
        assert question.turns == before.turns[:-1]
        assert len(question.record.images) == len(before.images)
        moved = 0 < len(before.images) < 3
        assert (question.record.images != before.images) == moved
    shown = Counter(picture.path for question in questions for picture in question.record.images)
    assert shown == Counter(picture.path for each in records for picture in each.images)
    assert shuffle_pictures(records) == shuffle_pictures(records)


def test_blind_shows_another_picture_even_if_many_questions_are_about_each() -> None:
    records = [record("Q?", "A.", id=f"r{index}", images=(image(str(index % 3)),)) for index in range(60)]
    questions = questions_of(records, None, "converted-x+blind")
    pairs = {(before.images, question.record.images) for before, question in zip(records, questions, strict=True)}
    assert len(pairs) == 3
    assert all(before != shown for before, shown in pairs)


def test_blind_shows_grey_where_no_other_record_has_as_many_pictures() -> None:
    records = [record("<image>Q?", "A.", id=f"r{index}", images=(image("one"),)) for index in range(3)]
    records += [record("Q?", "A.", id="none")]
    questions = questions_of(records, None, "converted-x+blind")
    assert [question.blank for question in questions] == [True, True, True, False]
    assert not any(question.blank for question in questions_of(many()[:1], None, "converted-x"))


def test_blank_shows_grey_pictures_of_the_same_size(tmp_path: Path) -> None:
    """The pictures are not even read."""
    missing = (Image(str(tmp_path / "no.png"), 5, 7, "0"), Image(str(tmp_path / "no2.png"), 1, 2, "1"))
    (question,) = questions_of([record("<image><image>Q?", "A.", images=missing)], None, "converted-x+blank")
    pictures = question.pictures()
    assert [picture.size for picture in pictures] == question.sizes == [(5, 7), (1, 2)]
    assert {color for picture in pictures for _, color in picture.getcolors() or ()} == {(127, 127, 127)}
    assert question.record.images == missing


def test_a_picture_that_cannot_be_read_names_its_record(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    shown = (Image(str(tmp_path / "broken.png"), 5, 7, "0"),)
    (question,) = questions_of([record("<image>Q?", "A.", images=shown, id="r7")], None, "model-x")
    with pytest.raises(UserError, match=r"broken\.png, record r7: cannot read the picture"):
        question.pictures()


def test_pictures_are_seen_upright_and_in_rgb(tmp_path: Path) -> None:
    turned = Pictures.Exif()
    turned[0x0112] = 6  # the camera was turned by 90 degrees
    Pictures.new("L", (20, 10)).save(tmp_path / "a.jpg", exif=turned)
    shown = (Image(str(tmp_path / "a.jpg"), 10, 20, "0"),)
    (picture,) = Question("r", (), record(images=shown)).pictures()
    assert (picture.size, picture.mode) == ((10, 20), "RGB")


BASE = record("Q?", "A.", images=(image(),))


@pytest.mark.parametrize(
    ("changed", "prompt", "checkpoint"),
    [
        ({"turns": record("Q!", "A.").turns}, None, "model-x"),
        ({"turns": record("Q?", "A.", "Q?", "A.").turns}, None, "model-x"),
        ({"turns": (Turn("system", "S"), *BASE.turns)}, None, "model-x"),
        ({"images": (image("b"),)}, None, "model-x"),
        ({"images": (image(), image())}, None, "model-x"),
        ({"images": (image("a", width=5),)}, None, "model-x"),
        ({}, "{question} ", "model-x"),
        ({}, None, "model-x+blank"),
    ],
)
def test_another_question_has_another_key(changed: dict[str, Any], prompt: str | None, checkpoint: str) -> None:
    (before,) = questions_of([BASE], None, "model-x")
    (after,) = questions_of([msgspec.structs.replace(BASE, **changed)], prompt, checkpoint)
    assert after.key != before.key


@pytest.mark.parametrize(
    "changed",
    [
        {"id": "other"},
        {"category": "other"},
        {"turns": record("Q?", "Another answer.").turns},
        {"answers": ("a", "b")},
        {"images": (msgspec.structs.replace(image(), path="elsewhere/a.png"),)},
    ],
)
def test_what_an_answer_does_not_depend_on_leaves_the_key(changed: dict[str, Any]) -> None:
    """So that corrected references, renamed records and moved pictures ask nothing again."""
    keys = {questions_of([each], None, "model-x")[0].key for each in (BASE, msgspec.structs.replace(BASE, **changed))}
    assert len(keys) == 1


def data(folder: Path, *records: Record) -> Path:
    write_records(folder / "data" / "test.jsonl", records)
    write_manifest(folder / "data")
    return folder / "data" / "manifest.json"


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (record("Q?", id="bad"), r"data, record bad: a record to evaluate ends with a question and its answer"),
        (record("Q?", "A.", "Q?", id="bad"), r"record bad: .*ends with a question and its answer"),
        (record(id="bad"), r"record bad: .*ends with a question and its answer"),
        (
            Record("bad", (), (Turn("system", "s"), Turn("assistant", "a"))),
            r"record bad: .*ends with a question and its answer",
        ),
        (
            record("<video>Q?", "A.", id="bad", videos=(Video("a.mp4", 1, 1.0, 2, 2, "0"),)),
            r"record bad: videos are not evaluated",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_one_clear_error(tmp_path: Path, broken: Record, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        read_evaluated(CONFIG, data(tmp_path, BASE, broken))
    assert raised.value.problem.advice


def test_an_empty_split_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data: the test split is empty\n    -> give `split` a larger share"):
        read_evaluated(CONFIG, data(tmp_path))


def test_the_limit_takes_the_first_records(tmp_path: Path) -> None:
    manifest = data(tmp_path, *(record("Q?", "A.", id=f"r{index}") for index in range(5)))
    assert [each.id for each in read_evaluated({**CONFIG, "limit": 2}, manifest)] == ["r0", "r1"]
    assert len(read_evaluated({**CONFIG, "limit": 9}, manifest)) == 5
