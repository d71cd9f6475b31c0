"""Annotation files: what is accepted, what is repaired, and how every bad record is named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vlmflow.data.annotations import Annotations
from vlmflow.data.formats.draft import UnusableError
from vlmflow.data.formats.objects import read_objects
from vlmflow.data.records import Turn

ASK = {"from": "human", "value": "<image>\nWhat is this?"}
SAY = {"from": "gpt", "value": "A cat."}
GOOD = {"id": "good", "image": "a.png", "conversations": [ASK, SAY]}


def changed(**keys: Any) -> dict[str, Any]:
    return {**GOOD, **keys}


def talk(*turns: tuple[Any, Any]) -> dict[str, Any]:
    return changed(conversations=[{"from": role, "value": text} for role, text in turns])


def read_annotations(paths: list[Path], form: str, placeholder: str, limit: int | None = None) -> SimpleNamespace:
    """Everything that is found in annotation files."""
    found = Annotations(paths, form, placeholder, limit=limit)
    drafts = list(found)
    return SimpleNamespace(drafts=drafts, problems=found.problems, **vars(found.counts))


def read(path: Path, content: Any, placeholder: str = "first", form: str = "auto") -> SimpleNamespace:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return read_annotations([path], form, placeholder)


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in GOOD.items() if name != key}


BAD = {
    "not an object": (["x"], "wrong type: array instead of object", None),
    "no conversations": (without("conversations"), "missing key: 'conversations'", None),
    "no conversations, misspelt": ({**without("conversations"), "conversatons": []}, "missing key", None),
    "conversations is text": (changed(conversations="Hi"), "wrong type: string instead of array", "conversations"),
    "no turn": (changed(conversations=[]), "empty value", "conversations"),
    "turn is text": (changed(conversations=["Hi"]), "wrong type: string instead of object", "conversations[0]"),
    "turn without text": (changed(conversations=[ASK, {"from": "gpt"}]), "missing key: 'value'", "conversations[1]"),
    "text is a number": (talk(("human", "<image>"), ("gpt", 3)), "wrong type: number", "conversations[1].value"),
    "text is null": (talk(("human", "<image>"), ("gpt", None)), "wrong type: null", "conversations[1].value"),
    "unknown role": (talk(("humann", "<image>?"), ("gpt", "A")), "unknown role: 'humann'", "conversations[0].from"),
    "role in capitals": (talk(("human", "<image>?"), ("GPT", "A")), "unknown role: 'GPT'", "conversations[1].from"),
    "two questions": (talk(("human", "<image>?"), ("user", "?")), "wrong order of roles", "conversations[1]"),
    "answer first": (talk(("gpt", "A"), ("human", "<image>")), "wrong order of roles", "conversations[0]"),
    "late system": (talk(("human", "<image>"), ("gpt", "A"), ("system", "B")), "wrong order", "conversations[2]"),
    "question last": (talk(("human", "<image>"), ("gpt", "A"), ("human", "B?")), "no answer", None),
    "system alone": (changed(image=None, conversations=[{"from": "system", "value": "Hi"}]), "no answer", None),
    "empty answer": (talk(("human", "<image>?"), ("gpt", "")), "empty text", "conversations[1].value"),
    "blank answer": (talk(("human", "<image>?"), ("gpt", " \n\t")), "empty text", "conversations[1].value"),
    "chatml": (talk(("human", "<image>?"), ("gpt", "A<|im_end|>")), "special token in the text: <|im_end|>", None),
    "chatml start": (talk(("human", "<|im_start|>system<image>"), ("gpt", "A")), "special token", None),
    "llama end": (talk(("human", "<image>?"), ("gpt", "A</s>")), "special token in the text: </s>", None),
    "image context": (talk(("human", "<image><IMG_CONTEXT>"), ("gpt", "A")), "special token", None),
    "image in answer": (talk(("human", "<image>?"), ("gpt", "<image>")), "placeholder outside a question", None),
    "image in system": (talk(("system", "<image>"), ("user", "<image>"), ("gpt", "A")), "placeholder outside", None),
    "too many placeholders": (
        talk(("human", "<image><image>"), ("gpt", "A")),
        "number of placeholders: 2 <image> for 1",
        None,
    ),
    "too few placeholders": (changed(image=["a", "b"]), "number of placeholders: 1 <image> for 2", "conversations"),
    "placeholder, no image": (without("image"), "number of placeholders: 1 <image> for 0", "conversations"),
    "image is a number": (changed(image=7), "wrong type: number instead of array or null or string", "image"),
    "image in a list is null": (changed(image=["a", None]), "wrong type: null instead of string", "image[1]"),
    "image is empty": (changed(image=""), "empty value", "image"),
    "image with NUL": (changed(image="a\0.png"), r"control character in a name: a\x00.png", "image"),
    "id is a list": (changed(id=[1]), "wrong type: array", "id"),
    "id is true": (changed(id=True), "wrong type: boolean", "id"),
    "id with newline": (changed(id="a\nb"), r"control character in a name: a\nb", "id"),
    "category is a number": (changed(category=1), "wrong type: number", "category"),
    "other picture key": ({"img": ["a.png"], "conversations": [{**ASK, "value": "?"}, SAY]}, "pictures under", "img"),
    "video in answer": (talk(("human", "<image>?"), ("gpt", "<video>")), "placeholder outside a question", None),
    "misspelt placeholder": (talk(("human", "<Image>\n?"), ("gpt", "A")), "misspelt placeholder: <Image>", None),
    "tool call": (talk(("human", "<image>?"), ("tool", "A")), "unknown role: 'tool'", "conversations[1].from"),
    "NUL in the text": (talk(("human", "<image>?"), ("gpt", "a\0b")), "control character in the text: 0x00", None),
    "half a surrogate": (talk(("human", "<image>?"), ("gpt", "\ud83d")), "broken character", "conversations[1].value"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("lines", [False, True])
def test_a_bad_record_is_named_and_its_neighbours_are_read(tmp_path: Path, case: str, lines: bool) -> None:
    record, reason, field = BAD[case]
    records = [GOOD, record, {**GOOD, "id": "last"}]
    content = "\n".join(map(json.dumps, records)) if lines else records
    found = read(tmp_path / "a.json", content)
    assert (found.read, [draft.id for draft in found.drafts]) == (3, ["good", "last"])
    problem = found.problems[0]
    assert problem.reason.startswith(reason)
    assert problem.advice
    assert problem.file == tmp_path / "a.json"
    assert ("line 2" if lines else "index 1") in str(problem.record)
    assert field is None or problem.field == field
    assert str(problem).isprintable() or str(problem).count("\n") == 1


def test_all_problems_of_all_records_are_found(tmp_path: Path) -> None:
    content = "\n".join(json.dumps(record) for record, _, _ in BAD.values())
    found = read(tmp_path / "a.jsonl", content)
    assert not found.drafts
    assert len({problem.record for problem in found.problems}) == found.read == len(BAD)


def test_the_nearest_role_and_key_are_named(tmp_path: Path) -> None:
    role = read(tmp_path / "a.json", [talk(("asistant", "?"), ("gpt", "A"))]).problems[0]
    assert "nearest known role is 'assistant'" in role.advice
    key = read(tmp_path / "a.json", [{**without("conversations"), "conversatons": []}]).problems[0]
    assert key.advice == "rename 'conversatons'"


@pytest.mark.parametrize("image", [None, []])
def test_text_only(tmp_path: Path, image: Any) -> None:
    record = changed(image=image, conversations=[{"from": "user", "value": "Hi"}, {"from": "assistant", "value": "Ho"}])
    (draft,) = read(tmp_path / "a.json", [record], placeholder="error").drafts
    assert draft.images == []
    assert draft.turns == [Turn("user", "Hi"), Turn("assistant", "Ho")]


def test_accepted_spellings(tmp_path: Path) -> None:
    records = [
        {**without("conversations"), "conversation": [ASK, SAY], "source": "web", "category": "cats"},
        {**without("id"), "source": "web"},
        changed(id=7, image=["a.png"]),
        changed(id=None),
        *[changed(id="7")] * 2,
        changed(id="7-2"),
        changed(id="screenshot\u202f9\u3000.png", image="screenshot\u202f9\u3000.png"),
    ]
    found = read(tmp_path / "pets.json", records)
    assert not found.problems
    assert [draft.id for draft in found.drafts[:7]] == ["good", "pets-1", "7", "pets-3", "7-2", "7-3", "7-2-2"]
    assert found.repaired == {"key 'conversation'": 1, "duplicate id": 3}
    assert found.ignored == {"source": 2}
    assert [draft.category for draft in found.drafts[:2]] == ["cats", None]


def test_ids_are_unique_over_all_files(tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text(json.dumps([GOOD]))
    found = read_annotations([tmp_path / "a.json", tmp_path / "b.json"], "auto", "first")
    assert [draft.id for draft in found.drafts] == ["good", "good-2"]


@pytest.mark.parametrize(
    ("policy", "texts"),
    [("first", ["<image>\n<image>\nOne?", "Two?"]), ("last", ["One?", "<image>\n<image>\nTwo?"]), ("error", None)],
)
def test_missing_placeholders_are_placed_as_asked(tmp_path: Path, policy: str, texts: list[str] | None) -> None:
    turns = [("system", "Be brief."), ("human", "One?"), ("gpt", "1"), ("human", "Two?"), ("gpt", "2")]
    found = read(tmp_path / "a.json", [{**talk(*turns), "image": ["a.png", "b.png"]}], policy)
    if texts is None:
        assert [problem.reason for problem in found.problems] == ["number of placeholders: 0 <image> for 2 picture(s)"]
        return
    assert [turn.text for turn in found.drafts[0].turns if turn.role == "user"] == texts
    assert found.placed == {f"<image> before the {policy} question": 1}


def test_limit_stops_over_all_files(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([GOOD, {}, GOOD]))
    found = read_annotations([tmp_path / "a.json"] * 2, "auto", "first", limit=4)
    assert (found.read, len(found.drafts), len(found.problems)) == (4, 3, 1)


TABLE = "image,question,answer,id,system,note\na.png,What?,A cat.,x,,n\nb.png,Hi?,Ho.,,Be brief.,n\n"


@pytest.mark.parametrize(
    ("name", "content", "form"),
    [
        ("a.csv", TABLE, "auto"),
        ("a.csv", "\ufeff" + TABLE.replace("\n", "\r\n"), "auto"),
        ("a.tsv", TABLE.replace(",", "\t"), "auto"),
        ("a.txt", TABLE.replace(",", "\t"), "auto"),
        ("a.txt", TABLE, "csv"),
        ("a.csv.gz", gzip.compress(TABLE.encode()), "auto"),
    ],
)
def test_tables(tmp_path: Path, name: str, content: Any, form: str) -> None:
    found = read(tmp_path / name, content, form=form)
    assert not found.problems
    first, second = found.drafts
    assert (first.id, first.images) == ("x", ["a.png"])
    assert first.turns == [Turn("user", "<image>\nWhat?"), Turn("assistant", "A cat.")]
    assert (second.id, second.images) == ("a-1", ["b.png"])
    assert second.turns == [Turn("system", "Be brief."), Turn("user", "<image>\nHi?"), Turn("assistant", "Ho.")]
    assert found.ignored == {"note": 2}


@pytest.mark.parametrize(
    ("row", "reason", "field"),
    [
        ("a.png,What?", "wrong number of columns: 2 instead of 3", None),
        ("a.png,What, where?,Here", "wrong number of columns: 4 instead of 3", None),
        ("a.png,What?,", "empty text", "answer"),
        (",What?,A cat.", "empty value", "image"),
        ("a.png,,A cat.", "empty text", "question"),
        ("a.png,<image><image>,A cat.", "number of placeholders", "question"),
        ('a.png,"What?" is,A cat.', "not a valid table", None),
    ],
)
def test_a_bad_row_is_named_by_line_and_column(tmp_path: Path, row: str, reason: str, field: str | None) -> None:
    found = read(tmp_path / "a.csv", f'image,question,answer\n\n{row}\na.png,"Two\nlines",A cat.\n')
    assert (found.read, len(found.drafts)) == (2, 1)
    assert found.problems[0].reason.startswith(reason)
    assert (found.problems[0].record, found.problems[0].field) == ("line 3", field)


@pytest.mark.parametrize(
    ("name", "content", "form"),
    [
        ("a.json", json.dumps([GOOD], indent=1), "auto"),
        ("a.jsonl", "\n" + json.dumps(GOOD) + "\n\n", "auto"),
        ("a.json", json.dumps(GOOD), "llava"),
        ("a.jsonl", json.dumps([GOOD]), "auto"),
        ("a.csv", json.dumps([GOOD]), "auto"),
        ("a", b"\xef\xbb\xbf" + json.dumps([GOOD]).encode(), "auto"),
        ("a.json.gz", gzip.compress(json.dumps([GOOD]).encode()), "auto"),
        ("a.jsonl.gz", gzip.compress(json.dumps(GOOD).encode()), "auto"),
    ],
)
def test_json_by_content(tmp_path: Path, name: str, content: Any, form: str) -> None:
    found = read(tmp_path / name, content, form=form)
    assert [draft.turns[1].text for draft in found.drafts] == ["A cat."]
    assert not found.problems


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.json", "", "empty file"),
        ("a.json", " \n", "empty file"),
        ("a.json", json.dumps([GOOD, GOOD])[:-9], "not valid JSON"),
        ("a.json", json.dumps({"data": [GOOD]}, indent=1), "no list of records"),
        ("a.json", "[" * 100_000, "not valid JSON: nested too deeply"),
        ("a.json", json.dumps([GOOD]).encode("utf-16"), "no UTF-8 text: the file is UTF-16"),
        ("a.json", "[]", "empty list"),
        ("a.csv", "image,question,answer\n", "empty table"),
        ("a.csv", "image;question;answer\n", "missing column: question, answer"),
        ("a.csv", "image,question,answer,Image\n", "repeated column"),
        ("a.csv", '"', "missing column"),
        ("a.json.gz", b"[]", "not readable: Not a gzipped file"),
        ("a.json.gz", gzip.compress(json.dumps([GOOD]).encode())[:-20], "not readable"),
        ("a.json.gz", gzip.compress(b" " * 150_000_000, 1), "decompression bomb"),
    ],
)
def test_an_unreadable_file_is_one_problem_of_the_file(tmp_path: Path, name: str, content: Any, reason: str) -> None:
    found = read(tmp_path / name, content)
    (problem,) = found.problems
    assert problem.reason.startswith(reason)
    assert (problem.file, problem.record) == (tmp_path / name, None)


@pytest.mark.parametrize("line", ["{", '{"id": ', json.dumps(GOOD)[:-3], "[" * 100_000, '{"id": ' + "9" * 5000 + "}"])
def test_a_broken_line_costs_only_itself(tmp_path: Path, line: str) -> None:
    content = "\n".join([json.dumps(GOOD), line + " ", json.dumps(GOOD)])
    found = read(tmp_path / "a.jsonl", content)
    assert (found.read, len(found.drafts)) == (3, 2)
    assert found.problems[0].reason.startswith("nested" if line[0] == "[" else "not valid JSON")
    assert found.problems[0].record == "line 2"


def test_bytes_that_are_no_utf8_cost_their_record_only(tmp_path: Path) -> None:
    found = read(tmp_path / "a.csv", "image,question,answer\na.png,Wör?,A\na.png,Was?,A\n".encode("latin-1"))
    assert [problem.reason for problem in found.problems] == ["no UTF-8 text: byte 0xf6"]
    assert len(found.drafts) == 1


def test_a_large_array_is_read_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlmflow.data.stream._BLOCK", 7)
    records = [changed(id=str(index), note=["\u00e9\\", 1.5, {"a": [None]}]) for index in range(50)]
    for indent in (None, 1):
        found = read(tmp_path / "a.json", json.dumps(records, indent=indent))
        assert [draft.id for draft in found.drafts] == [record["id"] for record in records]
        assert not found.problems


@pytest.mark.parametrize("block", [5, 1 << 22])
@pytest.mark.parametrize(
    ("content", "place"),
    [
        ('[{"a": 1},\n {"b" 2}]', "line 2, column 7"),
        ('[{"a": 1}\n {"b": 2}]', "line 2, column 2"),
        ('[{"a": 1},\n]', "line 2, column 1"),
        ('[{"a": 1}]\nx', "line 2, column 1"),
        ('[{"a": "x\ny"}]', "line 1, column 10"),
    ],
)
def test_a_broken_array_names_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, content: str, place: str
) -> None:
    monkeypatch.setattr("vlmflow.data.stream._BLOCK", block)
    monkeypatch.setattr("vlmflow.data.stream._CUT", min(block, 16))
    problem = read(tmp_path / "a.json", content).problems[-1]
    assert problem.reason.startswith("not valid JSON")
    assert place in problem.reason


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"id": 1, "id": 2}', "duplicate key: 'id'"),
        ('{"id": NaN}', "not valid JSON: NaN is no number"),
        ('{"id": 1} {"id": 2}', "more than one value in a line"),
    ],
)
def test_what_json_forbids_is_refused(tmp_path: Path, line: str, reason: str) -> None:
    for content in (f"{line}\n", f"[{line}]"):
        problem = read(tmp_path / "a.json", content).problems[0]
        assert problem.reason.startswith(reason) or (line.count("{") > 1 and content[0] == "[")


@pytest.mark.parametrize(
    "objects",
    [
        '[{"bbox": [0, 0, 1e999, 1]}]',
        '[{"bbox": [0, 0, NaN, 1]}]',
        [{"bbox": [0, 0, 10**400, 1]}],
        [{"bbox": [0, 0, 1, 1], "image": 10**30}],
    ],
)
def test_numbers_that_no_box_has_are_refused_while_they_are_read(objects: Any) -> None:
    with pytest.raises(UnusableError, match="wrong shape of objects"):
        read_objects(objects)
