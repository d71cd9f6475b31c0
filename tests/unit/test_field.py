"""Predictions of the public suites as ours and back."""

from __future__ import annotations

import csv
import functools
import json
import zipfile
from pathlib import Path
from typing import Any

import openpyxl
import pandas
import pytest

from vlmflow.errors import UserError
from vlmflow.field.cells import as_list, as_text
from vlmflow.field.commands import export_main
from vlmflow.field.predictions import is_ours, read_predictions
from vlmflow.field.tables import LONGEST_XLSX, read_rows, write_rows
from vlmflow.main import main

# As VLMEvalKit writes MMBench: the task's columns less `image`, then the prediction.
MMBENCH = {
    "index": 241, "question": "Which animal is this?", "hint": "Look\nat it", "A": "a cat", "B": "None", "C": "",
    "answer": "B", "category": "identity", "l2-category": "single", "split": "dev", "prediction": "B. None",
}  # fmt: skip
# As lmms-eval 0.4 to 0.7 writes a line of DATE_samples_gqa.jsonl.
GQA = {
    "doc_id": 7, "target": "yes", "filtered_resps": ["Yes"], "doc_hash": "c0ffee", "exact_match": 1.0,
    "input": "Is it red?\nAnswer the question using a single word or phrase.",
}  # fmt: skip


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        write_rows(path, rows)
    return path


def read_one(path: Path, row: dict[str, Any]) -> dict[str, Any]:
    (line,) = read_predictions(written(path, [row]))
    return line


# --- VLMEvalKit ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".xlsx", ".tsv", ".csv", ".json"])
def test_predictions_of_vlmevalkit(tmp_path: Path, suffix: str) -> None:
    assert read_one(tmp_path / f"m_MMBench{suffix}", MMBENCH) == {
        "id": "241",
        "category": "identity",
        "images": [],
        "question": "Hint: Look\nat it\nQuestion: Which animal is this?\nOptions:\nA. a cat\nB. None\n"
        "Please select the correct answer from the options above. \n",
        "reference": "B",
        "references": ["B", "B. None", "None"],
        "prediction": "B. None",
    }


@pytest.mark.parametrize("suffix", [".xlsx", ".tsv", ".json"])
def test_open_questions_with_several_answers_and_a_score(tmp_path: Path, suffix: str) -> None:
    row = {"index": "a1", "question": "What is written?", "answer": "['12 l', \"12 L\"]", "prediction": "", "hit": 1}
    line = read_one(tmp_path / f"m_OCR{suffix}", row)
    assert (line["reference"], line["references"], line["prediction"]) == ("12 l", ["12 l", "12 L"], "")
    assert line.get("scores") == (None if suffix == ".tsv" else {"hit": 1.0})  # text files hold no numbers


@pytest.mark.parametrize("suffix", [".tsv", ".json"])
def test_files_that_pandas_writes(tmp_path: Path, suffix: str) -> None:
    """As ``dump`` of vlmeval/smp/file.py does; a missing cell is NaN, in JSON too."""
    frame = pandas.DataFrame([{**MMBENCH, "hint": float("nan")}, {**MMBENCH, "index": 242, "answer": float("nan")}])
    path = tmp_path / f"m{suffix}"
    if suffix == ".tsv":
        frame.to_csv(path, sep="\t", index=False, encoding="utf-8", quoting=csv.QUOTE_ALL)
    else:
        path.write_text(json.dumps(frame.to_dict("records"), indent=4, ensure_ascii=False))
    first, second = read_predictions(path)
    assert first["question"].startswith("Question: Which") and first["reference"] == "B"
    assert second["question"].startswith("Hint: Look\nat it\n") and second["reference"] == ""


def test_a_failed_request_is_no_answer(tmp_path: Path) -> None:
    failed = {**MMBENCH, "prediction": "Failed to obtain answer via API."}
    with pytest.raises(UserError, match=r"record 241: no answer: Failed[\s\S]*--reuse"):
        read_one(tmp_path / "m.tsv", failed)
    failed = {**GQA, "filtered_resps": ["[LMMS_EVAL_REQUEST_FAILED after 5 retries] timeout"]}
    with pytest.raises(UserError, match=r"record 7: no answer: \[LMMS_EVAL"):
        read_one(tmp_path / "m_samples_gqa.jsonl", failed)


# --- lmms-eval -------------------------------------------------------------------------------------------------------


def test_predictions_of_lmms_eval(tmp_path: Path) -> None:
    assert read_one(tmp_path / "1_samples_gqa.jsonl", GQA) == {
        "id": "7",
        "category": None,
        "images": [],
        "question": GQA["input"],
        "reference": "yes",
        "prediction": "Yes",
        "scores": {"exact_match": 1.0},
    }


@pytest.mark.parametrize(
    "row",
    [
        {"doc_id": 7, "doc": {"question": "Is it red?"}, "target": "yes", "resps": [["Yes"]]},
        {"doc_id": 7, "arguments": [["Is it red?", {"until": ["\n"]}]], "target": "yes", "filtered_resps": ["Yes"]},
        {"doc_id": 7, "arguments": {"gen_args_0": {"arg_0": "Is it red?"}}, "target": "yes", "filtered_resps": "Yes"},
        {"doc_id": 7, "input": "Is it red?", "target": "['yes', 'red']", "filtered_resps": [["Yes"]], "resps": [["a"]]},
    ],
)
def test_lines_of_other_versions(tmp_path: Path, row: dict[str, Any]) -> None:
    line = read_one(tmp_path / "1_samples_gqa.jsonl", row)
    assert (line["question"], line["reference"], line["prediction"]) == ("Is it red?", "yes", "Yes")
    assert line.get("references") == (["yes", "red"] if "red" in row["target"] else None)


def test_the_first_filter_counts(tmp_path: Path) -> None:
    rows = [{**GQA, "filter": "strict"}, {**GQA, "filter": "flexible", "filtered_resps": ["other"]}]
    (line,) = read_predictions(written(tmp_path / "s.jsonl", rows))
    assert line["prediction"] == "Yes"


def test_logs_of_old_versions(tmp_path: Path) -> None:
    path = tmp_path / "gqa.json"
    path.write_text(json.dumps({"args": {}, "model_configs": {}, "logs": [{**GQA, "resps": [["Yes"]]}]}))
    assert read_predictions(path)[0]["prediction"] == "Yes"


@pytest.mark.parametrize("responses", [[["-1.5", "True"], ["-2", "False"]], [], None, [3], ["a", "b"]])
def test_what_is_not_one_text_is_refused(tmp_path: Path, responses: Any) -> None:
    with pytest.raises(UserError, match=r"record 7, field filtered_resps: no answer, or several[\s\S]*generate_until"):
        read_one(tmp_path / "s.jsonl", {**GQA, "filtered_resps": responses})


# --- and back --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".xlsx", ".tsv", ".json"])
def test_export_for_vlmevalkit_has_the_columns_of_its_own_file(tmp_path: Path, suffix: str) -> None:
    task = {**{key: cell for key, cell in MMBENCH.items() if key != "prediction"}, "image": "aGk="}
    written(tmp_path / "MMBench.tsv", [task, {**task, "index": 242, "answer": "A"}])
    ours = written(tmp_path / "predictions.jsonl", [
        {"id": "242", "question": "q", "reference": "A", "prediction": "=A1+\u732b\t\"x\"\n"},
        {"id": "241", "question": "q", "reference": "B", "prediction": "B"},
    ])  # fmt: skip
    output = tmp_path / f"tiny_MMBench{suffix}"
    export_main([str(ours), "--layout", "vlmevalkit", "--tsv", str(tmp_path / "MMBench.tsv"), "--output", str(output)])
    rows = read_rows(output)
    assert list(rows[0]) == list(MMBENCH)
    assert [as_text(row["index"]) for row in rows] == ["241", "242"]
    assert rows[1]["prediction"] == '=A1+\u732b\t"x"\n'
    load = {".xlsx": pandas.read_excel, ".tsv": functools.partial(pandas.read_csv, sep="\t"), ".json": pandas.read_json}
    loaded = load[suffix](output)  # as its scorers do
    assert list(loaded["index"]) == [241, 242] and list(loaded["prediction"]) == [row["prediction"] for row in rows]
    assert [line["prediction"] for line in read_predictions(output)] == ["B", '=A1+\u732b\t"x"\n']


def test_what_looks_like_a_formula_is_text(tmp_path: Path) -> None:
    write_rows(tmp_path / "m.xlsx", [{"index": "1", "prediction": '=HYPERLINK("http://a")'}])
    sheet = openpyxl.load_workbook(tmp_path / "m.xlsx").worksheets[0]
    assert (sheet["B2"].data_type, sheet["B2"].value) == ("s", '=HYPERLINK("http://a")')


def test_export_without_the_task(tmp_path: Path) -> None:
    line = {"id": "1", "category": "c", "question": "<image>\nWhat?", "reference": "a", "references": ["a", "b"],
            "prediction": "p"}  # fmt: skip
    export_main(
        [str(written(tmp_path / "p.jsonl", [line])), "--layout", "vlmevalkit", "--output", str(tmp_path / "m.tsv")]
    )
    (row,) = csv.DictReader((tmp_path / "m.tsv").open(encoding="utf-8"), delimiter="\t")
    assert row == {"index": "1", "question": "What?", "answer": "['a', 'b']", "category": "c", "prediction": "p"}
    assert read_predictions(tmp_path / "m.tsv")[0]["references"] == ["a", "b"]


def test_export_of_records_that_the_task_does_not_have(tmp_path: Path) -> None:
    task = written(tmp_path / "T.tsv", [{"index": "1", "question": "q", "answer": "a", "image": "x"}])
    ours = written(tmp_path / "p.jsonl", [{"id": "2", "question": "q", "reference": "a", "prediction": "p"}])
    with pytest.raises(UserError, match=r"record 2: 1 predictions are of no row"):
        export_main([str(ours), "--layout", "vlmevalkit", "--tsv", str(task), "--output", str(tmp_path / "m.tsv")])


def test_export_for_lmms_eval_is_what_from_log_reads(tmp_path: Path) -> None:
    ours = written(tmp_path / "p.jsonl", [{"id": "3", "question": "q", "reference": "a", "prediction": "p"}])
    export_main([str(ours), "--layout", "lmms-eval", "--task", "gqa", "--output", str(tmp_path / "logs" / "gqa.json")])
    content = json.loads((tmp_path / "logs" / "gqa.json").read_text())
    # as lmms_eval/models/simple/from_log.py takes it apart
    assert content["args"]["limit"] is None and content["model_configs"]["task"] == "gqa"
    assert {data["doc_id"]: data["resps"][0][0] for data in content["logs"]} == {3: "p"}
    assert read_predictions(tmp_path / "logs" / "gqa.json")[0]["prediction"] == "p"


@pytest.mark.parametrize(("name", "more", "message"), [("a-1", ["--task", "gqa"], "no doc_id"), ("1", [], "--task")])
def test_export_for_lmms_eval_needs_numbers_and_a_task(
    tmp_path: Path, name: str, more: list[str], message: str
) -> None:
    ours = written(tmp_path / "p.jsonl", [{"id": name, "question": "q", "reference": "a", "prediction": "p"}])
    with pytest.raises(UserError, match=message):
        export_main([str(ours), "--layout", "lmms-eval", *more, "--output", str(tmp_path / "l.json")])


def test_half_a_surrogate_pair_is_written_as_a_question_mark(tmp_path: Path) -> None:
    source, output = written(tmp_path / "s.jsonl", [{**GQA, "filtered_resps": ["\ud83d"]}]), tmp_path / "p.jsonl"
    main(["import", str(source), "--output", str(output)])
    assert read_predictions(output)[0]["prediction"] == "?"


def test_import_writes_lines_that_are_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = written(tmp_path / "m_MMBench.xlsx", [MMBENCH]), tmp_path / "out" / "predictions.jsonl"
    assert not is_ours(source)
    main(["import", str(source), "--output", str(output)])
    assert is_ours(output) and read_predictions(output) == read_predictions(source)
    assert "1 predictions" in capsys.readouterr().out


def test_compare_pairs_the_two_suites_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = [{**GQA, "doc_id": index, "exact_match": float(index < 4)} for index in range(12)]
    after = [{**GQA, "doc_id": index, "exact_match": float(index != 3)} for index in range(12)]
    files = [written(tmp_path / f"{name}_samples_gqa.jsonl", rows) for name, rows in (("a", before), ("b", after))]
    main(["compare", *map(str, files), "--output", str(tmp_path / "compared")])
    found = json.loads((tmp_path / "compared" / "comparison.json").read_text())["headline"]
    assert (found["metric"], found["n"], found["wins"], found["losses"]) == ("exact_match", 12, 8, 1)
    assert (tmp_path / "compared" / "comparison.csv").is_file() and "exact" in capsys.readouterr().out
    assert is_ours(tmp_path / "compared" / "before.jsonl")


def test_compare_of_other_questions_is_refused(tmp_path: Path) -> None:
    files = [written(tmp_path / f"{name}.jsonl", [{**GQA, "doc_id": name}]) for name in ("1", "2")]
    with pytest.raises(SystemExit, match="error: "):
        main(["compare", *map(str, files), "--output", str(tmp_path / "compared")])


# --- bad files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.xlsx", b"PK no zip", "not a valid xlsx"), ("a.tsv", b"", "empty file"), ("a.txt", b"a", "not one of"),
        ("a.tsv", b"index\tquestion\n1\tq\n", "no columns index and prediction: index, question"),
        ("a.tsv", b"index\tprediction\n1\n", "1 cells instead of 2, up to line 2"),
        ("a.tsv", b"index\tprediction\n1\t\"a\"b\n", "not a valid table"),
        ("a.tsv", b"index\tprediction\n1\t\xff\n", "no UTF-8"), ("a.tsv", b"index\tprediction\n", "no rows"),
        ("a.jsonl", b"{\n", "line 1 is no JSON"), ("a.jsonl", b"[1]\n", "line 1 is no JSON object"),
        ("a.jsonl", b"\n", "no predictions"), ("a.jsonl", b'{"a": 1}\n', "not predictions: a"),
        ("a.json", b'{"results": {}}', "no list of predictions"), ("a.json", b"[1]", "no list of predictions"),
        ("a.json", b"[" * 100_000, "not valid JSON"),
    ],
)  # fmt: skip
def test_other_files_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_predictions(tmp_path / name)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["a.xlsx", "a.json", "a.jsonl", "a.tsv"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"{name}: no such file"):
        read_predictions(tmp_path / name)


def test_a_record_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="record 241: the record is answered twice"):
        read_predictions(written(tmp_path / "a.tsv", [MMBENCH, MMBENCH]))


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlmflow.field.tables._UNPACKED", 1 << 20)
    with zipfile.ZipFile(tmp_path / "a.xlsx", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/worksheets/sheet1.xml", b" " * (1 << 21))
    with pytest.raises(UserError, match="unpacks to more"):
        read_predictions(tmp_path / "a.xlsx")


@pytest.mark.parametrize("text", ["a" * (LONGEST_XLSX + 1), "a\x00b"])
def test_what_a_sheet_cannot_hold_is_not_cut_off(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"row 1[\s\S]*\.tsv or \.json instead"):
        write_rows(tmp_path / "a.xlsx", [{"prediction": text}])
    write_rows(tmp_path / "a.tsv", [{"prediction": text}])


@pytest.mark.parametrize(
    ("cell", "texts"),
    [("a", ["a"]), ("", []), (None, []), (float("nan"), []), (3.0, ["3"]), (2.5, ["2.5"]), ("['a', 'b']", ["a", "b"]),
     ("[]", []), ([], []), ("[10, 20]", ["[10, 20]"]), ([10, 20], ["[10, 20]"]), ("['a', 3]", ["['a', 3]"]),
     ([[1, 2], [3, 4]], ["[[1, 2], [3, 4]]"]), ([["\u00e9"]], ['[["\u00e9"]]']), (["a", None], ['["a", null]']),
     ("[a]", ["[a]"]), ("[__import__('os')]", ["[__import__('os')]"]), ("[" * 5000 + "]" * 5000, None), (["x"], ["x"])],
)  # fmt: skip
def test_cells_are_parsed_and_never_run(cell: Any, texts: list[str] | None) -> None:
    assert as_list(cell) == (texts if texts is not None else [cell])
