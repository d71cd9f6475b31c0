"""The canonical record as a line of JSON."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from vlmflow.data.records import Image, Record, Turn, read_records, write_records
from vlmflow.errors import UserError

SCHEMA = Path(__file__).parents[2] / "workflow" / "schemas" / "record.schema.yaml"
RECORDS = [
    Record(
        "中文-1",
        (Image("pictures/a b.png", 3, 4, "0" * 64),),
        (Turn("user", "<image>\n这是什么？\u2028\r\n"), Turn("assistant", "一只猫。")),
        "animals",
    ),
    Record("2", (), (Turn("system", "Be brief."), Turn("user", "Hello"), Turn("assistant", '"\\'))),
]


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    write_records(tmp_path / "deep" / "x.jsonl", RECORDS)
    assert read_records(tmp_path / "deep" / "x.jsonl") == RECORDS
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["x.jsonl"]


def test_lines_are_readable_and_their_keys_in_order(tmp_path: Path) -> None:
    write_records(tmp_path / "x.jsonl", RECORDS)
    first, second = (tmp_path / "x.jsonl").read_text(encoding="utf-8").strip("\n").split("\n")
    assert "这是什么" in first
    assert [list(json.loads(line)) for line in (first, second)] == [
        ["id", "images", "turns", "category"],
        ["id", "images", "turns"],
    ]


def test_records_follow_their_schema(tmp_path: Path) -> None:
    schema = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    write_records(tmp_path / "x.jsonl", RECORDS)
    for line in (tmp_path / "x.jsonl").read_text(encoding="utf-8").strip("\n").split("\n"):
        jsonschema.validate(json.loads(line), schema)


@pytest.mark.parametrize("name", ["record", "llava"])
def test_every_field_of_a_schema_is_described(name: str) -> None:
    def undescribed(node: dict[str, object], where: str) -> list[str]:
        children = {**node.get("properties", {}), **({"[]": node["items"]} if "items" in node else {})}  # type: ignore[dict-item]
        missing = [] if node.get("description") else [where]
        return missing + [found for key, child in children.items() for found in undescribed(child, f"{where}.{key}")]

    assert undescribed(yaml.safe_load(SCHEMA.with_name(f"{name}.schema.yaml").read_text()), name) == []


@pytest.mark.parametrize(
    "line", ["{", "[]", "null", '{"id": "x"}', '{"id": "x", "images": [{"path": "x"}], "turns": []}', ""]
)
def test_a_broken_line_is_named(tmp_path: Path, line: str) -> None:
    write_records(tmp_path / "x.jsonl", RECORDS)
    with (tmp_path / "x.jsonl").open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(UserError, match=r"x\.jsonl: line 3 is no record"):
        read_records(tmp_path / "x.jsonl")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x\.jsonl: no such file"):
        read_records(tmp_path / "x.jsonl")
