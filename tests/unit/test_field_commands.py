"""`vlmflow compare`, `import` and `export`: no input is overwritten, no row is taken on trust, names are the user's."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from openpyxl.worksheet.formula import ArrayFormula
from test_field import GQA, MMBENCH, written

from vlmflow.errors import UserError
from vlmflow.field.commands import compare_main, export_main, import_main
from vlmflow.field.predictions import read_predictions
from vlmflow.field.scores import as_scores

OURS = {"id": "1", "question": "q", "reference": "a", "prediction": "p"}
TASK = {"question": "q", "answer": "a", "image": "aGk="}


def samples(path: Path, right: int, **more: Any) -> Path:
    """Eight samples of lmms-eval, the first ``right`` of them right."""
    path.parent.mkdir(exist_ok=True)
    return written(path, [{**GQA, "doc_id": i, "exact_match": float(i < right), **more} for i in range(8)])


def refused(file: Path, *rows: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        read_predictions(written(file, list(rows)))
    return str(caught.value)


# --- the user's files ------------------------------------------------------------------------------------------------


def test_compare_overwrites_no_input(tmp_path: Path) -> None:
    folder = tmp_path / "same"
    files = [samples(folder / "after.jsonl", 3), samples(folder / "before.jsonl", 5)]
    content = [file.read_bytes() for file in files]
    with pytest.raises(UserError, match=r"after\.jsonl: would be overwritten"):
        compare_main([*map(str, files), "--output", str(folder)])
    assert [file.read_bytes() for file in files] == content and len(list(folder.iterdir())) == 2


def test_compare_reads_both_files_before_it_writes(tmp_path: Path) -> None:
    files = [samples(tmp_path / "a.jsonl", 3), tmp_path / "gone.jsonl"]
    with pytest.raises(UserError, match=r"gone\.jsonl: no such file"):
        compare_main([*map(str, files), "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_files_of_ours_may_stand_in_the_folder_of_the_comparison(tmp_path: Path) -> None:
    files = [written(tmp_path / name, [OURS]) for name in ("before.jsonl", "after.jsonl")]
    compare_main([*map(str, files), "--output", str(tmp_path)])
    assert (tmp_path / "comparison.md").is_file()


def test_a_file_is_not_compared_with_itself(tmp_path: Path) -> None:
    file = samples(tmp_path / "a.jsonl", 3)
    with pytest.raises(UserError, match=r"a\.jsonl: before and after are the same file"):
        compare_main([str(file), str(file), "--output", str(tmp_path / "out")])


def test_import_and_export_overwrite_no_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ours, task = written(Path("own.jsonl"), [OURS]), written(Path("T.tsv"), [{"index": 1, **TASK}])
    content = task.read_bytes()
    with pytest.raises(UserError, match=r"own\.jsonl: would be overwritten"):
        import_main(["own.jsonl", "--output", str(tmp_path / "own.jsonl")])
    with pytest.raises(UserError, match=r"T\.tsv: would be overwritten"):
        export_main([str(ours), "--layout", "vlmevalkit", "--tsv", "T.tsv", "--output", "T.tsv"])
    assert task.read_bytes() == content


def test_the_comparison_names_the_users_files(tmp_path: Path) -> None:
    files = [samples(tmp_path / "my_base.jsonl", 3), samples(tmp_path / "my_tuned.jsonl", 5)]
    compare_main([*map(str, files), "--output", str(tmp_path / "out")])
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert text.startswith(f"# {files[0]} -> {files[1]}\n")
    assert f"| {files[0]} | 37.5% |" in text and f"| {files[1]} | 62.5% |" in text
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert found["experiment"]["name"] == "my_tuned"
    assert [row["checkpoint"] for row in found["evaluations"][0]["systems"]] == list(map(str, files))


def test_errors_name_the_users_files(tmp_path: Path) -> None:
    files = [samples(tmp_path / "a.jsonl", 3), samples(tmp_path / "b.jsonl", 5, target="no")]
    with pytest.raises(UserError, match=r"^\S*/a\.jsonl, field metrics: no metric 'foo'"):
        compare_main([*map(str, files), "--output", str(tmp_path / "out"), "--metrics", "foo"])
    with pytest.raises(UserError, match=r"^\S*/b\.jsonl, record 0, field reference: reference differs from \S*/a\."):
        compare_main([*map(str, files), "--output", str(tmp_path / "out")])


@pytest.mark.parametrize("name", ["folder", "folder.json", "folder.xlsx"])
def test_a_folder_is_told_from_a_missing_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=r"folder.*: a folder, not a file"):
        read_predictions(tmp_path / name)


def test_a_reader_that_has_enough_ends_it_quietly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:  # flushed when it is closed, as at the end of a process
        monkeypatch.setattr(sys, "stdout", stream)
        import_main([str(samples(tmp_path / "a.jsonl", 3)), "--output", str(tmp_path / "p.jsonl")])


# --- scores of other tools -------------------------------------------------------------------------------------------


def test_scores_of_another_tool_are_shown_as_they_are(tmp_path: Path) -> None:
    files = [
        written(tmp_path / f"{name}.json", [{**MMBENCH, "index": i, "score": i % 2 + best} for i in range(8)])
        for name, best in (("a", 7), ("b", 8))
    ]
    compare_main([*map(str, files), "--output", str(tmp_path / "out")])
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "score 7.500 -> 8.500 (+1.000, 95% CI" in text and "points" not in text
    assert "`score` is not a metric of vlmflow: shown as it is; higher counts as better." in text
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["headline"]["unit"] == "own"


def test_our_metrics_come_first(tmp_path: Path) -> None:
    files = []
    for name, right in (("a", 3), ("b", 5)):
        rows = [{"strict_acc": 0.5, **GQA, "doc_id": i, "exact_match": float(i < right)} for i in range(8)]
        files.append(written(tmp_path / f"{name}.jsonl", rows))
    compare_main([*map(str, files), "--output", str(tmp_path / "out")])
    (found,) = json.loads((tmp_path / "out" / "comparison.json").read_text())["evaluations"]
    assert [row["metric"] for row in found["metrics"]] == ["exact_match", "strict_acc"]
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "| exact match | 37.5% | 62.5% | +25.0 |" in text and "| strict acc | 0.500 | 0.500 | 0.000 |" in text


def test_numbers_that_are_no_scores() -> None:
    cells = {
        "inference_ms": 0.5, "output_tokens": 12, "question_id": 7, "duration": 3.5, "num_frames": 8, "loss": -0.5,
        "pixels": 4e5, "bleu": 34.5, "hit": True, "score": 8, "cer": 1.25, "count_acc": 0.5, "text": "1",
        "gone": float("nan"),
    }  # fmt: skip
    assert as_scores(cells) == {"hit": 1.0, "score": 8.0, "cer": 1.25, "count_acc": 0.5}


# --- every row -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("good", "changed", "message"),
    [
        (GQA, {"doc_id": ...}, "line 2, field doc_id: it is missing"),
        (GQA, {"doc_id": None}, "line 2, field doc_id: it is null"),
        (GQA, {"filtered_resps": ...}, "7, field filtered_resps: no answer, or several"),
        (MMBENCH, {"prediction": ...}, "line 2, field prediction: it is missing"),
        (MMBENCH, {"prediction": None}, "line 2, field prediction: it is null"),
        (MMBENCH, {"prediction": ["a"]}, 'line 2, field prediction: it is ["a"]'),
        (MMBENCH, {"index": ""}, 'line 2, field index: it is ""'),
        (OURS, {"question": ..., "reference": ...}, "line 2, field question: it is missing"),
        (OURS, {"prediction": None}, "line 2, field prediction: it is null"),
        (OURS, {"prediction": 3}, "line 2, field prediction: it is 3"),
        (OURS, {"id": ["1"]}, 'line 2, field id: it is ["1"]'),
        (OURS, {"references": "a"}, 'line 2, field references: it is "a"'),
    ],
)  # fmt: skip
def test_a_bad_row_is_told_by_file_line_and_field(
    tmp_path: Path, good: dict[str, Any], changed: dict[str, Any], message: str
) -> None:
    bad = {name: cell for name, cell in {**good, **changed}.items() if cell is not ...}
    assert refused(tmp_path / "p.jsonl", good, bad).startswith(f"{tmp_path / 'p.jsonl'}, record {message}")


def test_ids_are_texts(tmp_path: Path) -> None:
    import_main([str(written(tmp_path / "own.jsonl", [{**OURS, "id": 7}])), "--output", str(tmp_path / "p.jsonl")])
    assert json.loads((tmp_path / "p.jsonl").read_text())["id"] == "7"


@pytest.mark.parametrize("answer", ["=A1+B2", "=SUM(1", "{=x}"])
def test_an_excel_answer_that_begins_like_a_formula(tmp_path: Path, answer: str) -> None:
    """As pandas and XlsxWriter have it: a formula, for the latter an array formula, without a result."""
    book = openpyxl.Workbook()
    book.active.append(["index", "question", "answer", "prediction"])
    book.active.append([1, "q", "a", answer])
    if answer.startswith("{"):
        book.active["D2"] = ArrayFormula("D2", answer[1:-1])
    book.save(tmp_path / "m.xlsx")
    assert read_predictions(tmp_path / "m.xlsx")[0]["prediction"] == answer


# --- export ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "partly"), [(2, True), (3, False)])
def test_export_of_a_part_is_told(tmp_path: Path, asked: int, partly: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows without a picture do not count: neither VLMEvalKit nor the prepared data set has them."""
    rows = [*({"index": i, **TASK} for i in range(3)), {"index": 3, **TASK, "image": ""}]
    task = written(tmp_path / "T.tsv", rows)
    ours = written(tmp_path / "p.jsonl", [{**OURS, "id": i} for i in range(asked)])
    export_main([str(ours), "--layout", "vlmevalkit", "--tsv", str(task), "--output", str(tmp_path / "m.tsv")])
    assert ("2 of the task's 3 rows: not the official number" in capsys.readouterr().out) == partly
