"""Further right answers of a record, from every annotation format to the canonical line."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from vlmflow.data.annotations import Annotations
from vlmflow.data.join import Joiner
from vlmflow.data.records import Record, Turn, encode_record, read_records, write_records

SCHEMA = Path(__file__).parents[2] / "workflow" / "schemas" / "record.schema.yaml"
TURNS = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "car"}]
MESSAGES = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "car"}]
VALUES = {
    "llava": {"conversations": TURNS},
    "sharegpt": {"conversations": TURNS},
    "swift": {"query": "What?", "response": "car"},
    "messages": {"messages": MESSAGES},
}


def read(path: Path, form: str) -> tuple[list[Record], list[str]]:
    annotations = Annotations([path], form, "first")
    joiner = Joiner(path.parent, {}, {}, "round-1000", [path])
    records = [record for draft in annotations if isinstance(record := joiner.join(draft), Record)]
    assert not annotations.counts.ignored
    return records, [str(problem) for problem in annotations.problems]


def read_value(folder: Path, form: str, answers: Any) -> tuple[list[Record], list[str]]:
    (folder / "a.json").write_text(json.dumps([{**VALUES[form], "answers": answers}]), encoding="utf-8")
    return read(folder / "a.json", form)


def read_row(folder: Path, cell: str, form: str = "csv") -> tuple[list[Record], list[str]]:
    with (folder / "a.csv").open("w", encoding="utf-8", newline="") as stream:
        rows = csv.writer(stream, delimiter="," if form == "csv" else "\t")
        rows.writerows([["question", "answer", "answers"], ["What?", "car", cell]])
    return read(folder / "a.csv", form)


@pytest.mark.parametrize("form", VALUES)
def test_answers_of_every_format(tmp_path: Path, form: str) -> None:
    (record,), problems = read_value(tmp_path, form, ["a car", "汽车", "a car"])
    assert (record.answers, problems) == (("a car", "汽车", "a car"), [])
    assert record.turns == (Turn("user", "What?"), Turn("assistant", "car"))
    for none in (None, []):
        (record,), problems = read_value(tmp_path, form, none)
        assert (record.answers, problems) == ((), [])


@pytest.mark.parametrize("form", ["csv", "tsv"])
def test_answers_of_a_table(tmp_path: Path, form: str) -> None:
    (record,), problems = read_row(tmp_path, '["a car", "汽车"]', form)
    assert (record.answers, problems) == (("a car", "汽车"), [])
    (record,), problems = read_row(tmp_path, "", form)
    assert (record.answers, problems) == ((), [])


@pytest.mark.parametrize("cell", ["a car", '{"a": 1}', '["a", 1]', "[" * 100_000, '"a"'])
def test_a_cell_that_is_no_list(tmp_path: Path, cell: str) -> None:
    records, (problem,) = read_row(tmp_path, cell)
    assert not records
    assert "field answers: wrong answers: not a JSON list of texts" in problem


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ("a car", "answers: wrong type: string instead of array or null"),
        ([{"answer": "a car"}], r"answers[0]: wrong type: object instead of string"),
        (["a", ""], "answers[1]: empty value"),
        (["a", " "], "answers[1]: empty text"),
        (["a\0"], "answers[0]: control character in the text"),
        (["\ud800"], "answers[0]: broken character"),
        (["<box>[[1, 2]]</box>"], "answers[0]: wrong box in the text"),
    ],
)
def test_answers_that_no_metric_could_use(tmp_path: Path, answers: Any, reason: str) -> None:
    records, problems = read_value(tmp_path, "llava", answers)
    assert not records
    assert any(reason in problem for problem in problems)


def test_the_line_of_a_record(tmp_path: Path) -> None:
    plain = Record("1", (), (Turn("user", "What?"), Turn("assistant", "car")))
    more = Record("2", (), plain.turns, answers=("a car",))
    assert b"answers" not in encode_record(plain)
    schema = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))
    for record in (plain, more):
        jsonschema.validate(json.loads(encode_record(record)), schema)
    write_records(tmp_path / "x.jsonl", [plain, more])
    assert read_records(tmp_path / "x.jsonl") == [plain, more]
