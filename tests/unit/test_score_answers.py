"""From parts of answers to predictions and scores: what does not belong together is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from conftest import read_lines
from vlmflow.data.records import Image, Record, Turn, write_records
from vlmflow.errors import UserError
from vlmflow.evaluation.score import score_answers
from vlmflow.files import read_json, read_manifest, write_json, write_manifest

ASKED = {"split": "test", "limit": None, "prompt": None, "backend": "transformers", "max_new_tokens": 8,
         "max_tiles": None}  # fmt: skip
CONFIG = {**ASKED, "metrics": ["exact_match", "contains"], "chinese": "keep"}
CHECKPOINT = "converted-x"
SAID = ["red", "It is green.", "", "blue"]
RIGHT = ["red", "green", "red", "blue"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Manifest of four records, the last without a category and with further right answers."""
    records = []
    for index, right in enumerate(RIGHT):
        turns = (Turn("user", f"<image>\nQ{index}?"), Turn("assistant", right))
        last = {"answers": ("navy",)} if index == 3 else {"category": "colour"}
        records.append(Record(f"r{index}", (Image(f"{index}.png", 4, 3, str(index)),), turns, **last))  # type: ignore[arg-type]
    write_records(tmp_path / "data" / "test.jsonl", records)
    write_manifest(tmp_path / "data")
    return tmp_path / "data" / "manifest.json"


def answer(index: int, **changed: Any) -> dict[str, Any]:
    return {"id": f"r{index}", "prediction": SAID[index], "finish": "stop", "tokens": 2, "prompt": "h", **changed}


def part(data: Path, shard: str, answers: list[dict[str, Any]], **changed: Any) -> Path:
    """A file of answers; returns it."""
    facts = {"checkpoint": CHECKPOINT, "generation": ASKED, "engine": {"backend": "transformers"}, "asked": 1,
             "inputs": {"model": "m", "data": read_manifest(data)["hash"]}, "seconds": 1.5, **changed}  # fmt: skip
    path = data.parents[1] / "e" / CHECKPOINT / "answers" / f"{shard}.json"
    write_json(path, {"facts": facts, "answers": answers})
    return path


def halves(data: Path, **changed: Any) -> list[Path]:
    """The answers in two parts, the second one with other facts."""
    return [part(data, "1-of-2", [answer(0), answer(2)]), part(data, "2-of-2", [answer(1), answer(3)], **changed)]


def score(data: Path, answers: list[Path], judged: Path | None = None, **changed: Any) -> Path:
    output = data.parents[1] / "e" / CHECKPOINT / "scores.json"
    score_answers({**CONFIG, **changed}, CHECKPOINT, answers, data, output, judged)
    return output


def refused(data: Path, answers: list[Path], **changed: Any) -> str:
    with pytest.raises(UserError) as raised:
        score(data, answers, **changed)
    assert not list(data.parents[1].glob("e/*/scores.json"))
    assert raised.value.problem.advice
    return str(raised.value)


def test_parts_are_put_together_in_the_order_of_the_records(data: Path) -> None:
    output = score(data, halves(data)[::-1])
    lines = read_lines(output.with_name("predictions.jsonl"))
    assert [line["id"] for line in lines] == ["r0", "r1", "r2", "r3"]
    assert [line["prediction"] for line in lines] == SAID
    assert lines[1] == {
        "id": "r1", "category": "colour", "images": ["1.png"], "sizes": [[4, 3]], "question": "<image>\nQ1?",
        "reference": "green", "prediction": "It is green.", "finish": "stop",
        "scores": {"exact_match": 0.0, "contains": 1.0},
    }  # fmt: skip
    assert lines[3]["references"] == ["blue", "navy"]
    scores = read_json(output)
    assert (scores["evaluation"], scores["checkpoint"], scores["n"]) == ("e", CHECKPOINT, 4)
    assert scores["metrics"] == {"exact_match": 0.5, "contains": 0.75}
    assert scores["categories"]["colour"]["n"] == 3
    assert (scores["seconds"], scores["cut_off"]) == (3.0, 0)
    assert scores["generation"] == {**ASKED, "chinese": "keep"}
    assert scores["inputs"] == {"model": "m", "data": read_manifest(data)["hash"]}


def test_answers_that_were_cut_off_are_counted(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = [answer(0), answer(1, finish="length"), answer(2, finish="length"), answer(3)]
    assert read_json(score(data, [part(data, "1-of-1", found)]))["cut_off"] == 2
    assert "2 of 4 answers were cut off at max_new_tokens" in caplog.text


def test_the_prompt_is_no_part_of_the_question_that_is_shown(data: Path) -> None:
    framed = {**ASKED, "prompt": "{question} One word."}
    parts = [part(data, "1-of-1", [answer(index) for index in range(4)], generation=framed)]
    lines = read_lines(score(data, parts, prompt=framed["prompt"]).with_name("predictions.jsonl"))
    assert lines[0]["question"] == "<image>\nQ0?"


def test_a_judges_scores_are_taken(data: Path, tmp_path: Path) -> None:
    verdicts = [{"id": f"r{index}", "score": index / 4} for index in range(4)]
    write_json(tmp_path / "judged.json", {"judged": verdicts})
    output = score(data, halves(data), tmp_path / "judged.json", metrics=["judge", "exact_match"])
    assert read_json(output)["metrics"] == {"judge": 0.375, "exact_match": 0.5}
    write_json(tmp_path / "judged.json", {"judged": verdicts[:3]})
    output.unlink()
    message = refused(data, halves(data), judged=tmp_path / "judged.json", metrics=["judge"])
    assert message.startswith("record r3, field judge: judge is missing")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"checkpoint": "model-x"}, "checkpoint is model-x, in "),
        ({"inputs": {"model": "other"}}, "inputs is {'model': 'other'}, in "),
        ({"engine": {"backend": "lmdeploy"}}, "engine is {'backend': 'lmdeploy'}, in "),
        ({"generation": {**ASKED, "max_new_tokens": 9}}, "generation is "),
    ],
)
def test_parts_of_different_runs_are_refused(data: Path, changed: dict[str, Any], message: str) -> None:
    found = refused(data, halves(data, **changed))
    assert found.startswith(f"{data.parents[1]}/e/{CHECKPOINT}/answers/2-of-2.json, field {next(iter(changed))}: ")
    assert message in found


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"checkpoint": "model-x"}, "answers of checkpoint model-x, not of converted-x"),
        ({"inputs": {"model": "m", "data": "other"}}, "answers of data other, not of "),
        ({"generation": {**ASKED, "max_new_tokens": 9}}, "answers of max_new_tokens 9, not of 8"),
        ({"generation": {**ASKED, "prompt": "{question}!"}}, "answers of prompt {question}!, not of None"),
    ],
)
def test_answers_of_something_else_are_refused(data: Path, changed: dict[str, Any], message: str) -> None:
    found = refused(data, [part(data, "1-of-1", [answer(index) for index in range(4)], **changed)])
    assert "answers/1-of-1.json, field " in found
    assert message in found


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([0, 1, 3], "1 records have no answer: r2"),
        ([], "4 records have no answer: r0, r1, r2, r3"),
        ([0, 1, 1, 2, 3], "answers/1-of-1.json, record r1: the record is answered twice"),
    ],
)
def test_every_record_has_one_answer(data: Path, indices: list[int], message: str) -> None:
    assert message in refused(data, [part(data, "1-of-1", [answer(index) for index in indices])])


def test_a_record_in_two_parts_is_refused(data: Path) -> None:
    parts = [part(data, "1-of-2", [answer(0), answer(1)]), part(data, "2-of-2", [answer(1), answer(2), answer(3)])]
    assert "2-of-2.json, record r1: the record is answered twice" in refused(data, parts)


def test_an_answer_to_no_record_is_refused(data: Path) -> None:
    found = [*(answer(index) for index in range(4)), answer(0, id="stranger")]
    assert "answers of other records: stranger" in refused(data, [part(data, "1-of-1", found)])
    first = part(data, "1-of-1", found[:2], generation={**ASKED, "limit": 2})
    assert read_json(score(data, [first], limit=2))["n"] == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b'{"facts": {}', "not valid JSON"),
        ('{"facts": {}, "answers": [], "x": "rot"}'.encode("utf-16"), "not valid JSON"),
        (b'{"facts": {}, "answers": ["\xff\xfe"]}', "not valid JSON"),
        (b"[]", "no answers of a checkpoint"),
        (b'{"answers": []}', "no answers of a checkpoint"),
        (b'{"facts": [], "answers": []}', "no answers of a checkpoint"),
        (b'{"facts": {}, "answers": {}}', "no answers of a checkpoint"),
        (b'{"facts": {"checkpoint": "converted-x"}, "answers": []}', "no answers of a checkpoint"),
    ],
)
def test_what_is_no_file_of_answers_is_refused(data: Path, content: bytes, message: str) -> None:
    file = part(data, "1-of-1", [])
    file.write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        score(data, [file])
    assert str(raised.value).startswith(str(file))


@pytest.mark.parametrize(
    "broken", [{"prediction": None}, {"prediction": 3}, {"tokens": "2"}, {"id": None}, {"finish": None}], ids=str
)
def test_what_is_no_answer_is_refused(data: Path, broken: dict[str, Any]) -> None:
    found = [answer(0, **broken), *(answer(index) for index in range(1, 4))]
    assert "answers/1-of-1.json" in refused(data, [part(data, "1-of-1", found)])
    found[0] = {"id": "r0"}
    assert "answers/1-of-1.json: no answers of a checkpoint: " in refused(data, [part(data, "1-of-1", found)])


def test_hostile_answers_are_scored_and_written(data: Path) -> None:
    """Halves of characters, which no file can hold, control characters, scripts, line separators, great length."""
    file = part(data, "1-of-1", [])
    said = ["\ud83d half", "</script><script>alert(1)</script>", "\u2028\x85\x00\x1b[31m\r\nred", "红" * 20_000]
    content = {**read_json(file), "answers": [answer(index, prediction=text) for index, text in enumerate(said)]}
    file.write_text(json.dumps(content))
    lines = [
        json.loads(line) for line in score(data, [file]).with_name("predictions.jsonl").read_text().split("\n")[:-1]
    ]
    assert [line["prediction"] for line in lines] == ["? half", *said[1:]]
