"""Loose prediction files, and runs that are not what they should be: one clear message each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_compare_directions import CER, LOWER_CER, write_runs

from vlmflow.errors import UserError
from vlmflow.evaluation.compare import EvaluationRuns, compare_files
from vlmflow.evaluation.runs import load_runs

Line = dict[str, Any]


def write(path: Path, *lines: Line) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def found_in(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "comparison.json").read_text())["evaluations"][0]
    return found


def answer(number: int | str, text: str, **more: Any) -> Line:
    return {"id": number, "reference": "y", "prediction": text, **more}


def test_loose_files_with_scores_of_another_tool(tmp_path: Path) -> None:
    before = write(tmp_path / "a.jsonl", *({"id": i, "scores": {"hit": 0, "x": 1}} for i in range(4)))
    after = write(tmp_path / "b.jsonl", *({"id": i, "scores": {"hit": int(i > 0)}} for i in (3, 2, 1, 0)))
    compare_files(before, after, tmp_path / "comparison.json")
    found = found_in(tmp_path)
    assert (found["metric"], found["after"], found["wins"], found["ties"]) == ("hit", 0.75, 3, 1)
    assert [row["label"] for row in found["systems"]] == [str(before), str(after)]
    assert f"| {before} | 0.000 |" in (tmp_path / "comparison.md").read_text()
    assert (tmp_path / "comparison.csv").is_file()


def test_half_a_character_in_an_id(tmp_path: Path) -> None:
    before = write(tmp_path / "a.jsonl", answer("p\ud800", "y"), answer("q", "n"))
    after = write(tmp_path / "b.jsonl", answer("p\ud800", "n"), answer("q", "y"))
    compare_files(before, after, tmp_path / "comparison.json")
    assert found_in(tmp_path)["regressions"] == ["p?"]
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "a.jsonl", "b.jsonl", "comparison.csv", "comparison.json", "comparison.md"]  # fmt: skip


def test_scores_that_are_not_there_are_computed(tmp_path: Path) -> None:
    before = write(tmp_path / "a.jsonl", answer("p", "n", scores={"mine": 3}), answer("q", "oh, y"))
    after = write(tmp_path / "b.jsonl", answer("p", "y"), answer("q", "Y."))
    compare_files(before, after, tmp_path / "comparison.json")
    assert found_in(tmp_path)["metric"] == "exact_match"
    compare_files(before, after, tmp_path / "comparison.json", ["contains", "exact_match"])
    found = found_in(tmp_path)
    assert [(row["metric"], row["before"], row["after"]) for row in found["metrics"]] == [
        ("contains", 0.5, 1.0), ("exact_match", 0.0, 1.0)]  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "metrics", "message"),
    [
        ([answer("p", "y")], None, r"b\.jsonl: compared with .*a\.jsonl: 1 records are missing \(q\)"),
        ([answer("p", "y"), answer("q", "y"), answer("p", "y")], None, "b.jsonl, record p: the record is there twice"),
        ([answer("p", "y"), {"id": "q", "prediction": "y"}], None, "b.jsonl, record q.*reference is missing"),
        ([answer("p", "y"), {"id": "q", "reference": "z", "prediction": "y"}], None, "record q, field reference"),
        ([answer("p", "y"), {"id": ["q"]}], None, r"line 2 is not a prediction: its id is \['q'\]"),
        ([answer("p", "y"), 7], None, "line 2 is not a prediction"),
        ([], None, "no predictions: the evaluation set is empty"),
        ([answer("p", "y"), answer("q", "y")], ["exact_mach"], "did you mean 'exact_match'"),
    ],
)
def test_loose_files_that_do_not_fit(tmp_path: Path, lines: list[Any], metrics: list[str] | None, message: str) -> None:
    before = write(tmp_path / "a.jsonl", answer("p", "n"), answer("q", "n"))
    with pytest.raises(UserError, match=message):
        compare_files(before, write(tmp_path / "b.jsonl", *lines), tmp_path / "comparison.json", metrics)


def test_files_that_are_one_or_none(tmp_path: Path) -> None:
    before = write(tmp_path / "a.jsonl", answer("p", "n"))
    with pytest.raises(UserError, match="before and after are the same file"):
        compare_files(before, before, tmp_path / "comparison.json")
    with pytest.raises(UserError, match="a folder, not a file"):
        compare_files(before, tmp_path, tmp_path / "comparison.json")
    with pytest.raises(UserError, match=r"gone\.jsonl: no such file"):
        compare_files(before, tmp_path / "gone.jsonl", tmp_path / "comparison.json")


def rewrite(runs: EvaluationRuns, change: Callable[[Line], Any]) -> None:
    """Change the last line of the run after training."""
    file = runs.after / "predictions.jsonl"
    *rest, last = (json.loads(line) for line in file.read_text().splitlines())
    change(last)
    write(file, *rest, last)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: line["scores"].update(cer=float("nan")), "record r5, field scores.cer: the score is nan"),
        (lambda line: line["scores"].update(cer="1"), "record r5, field scores.cer: the score is 1, no finite number"),
        (lambda line: line["scores"].clear(), "record r5, field scores.cer: the score is missing"),
        (lambda line: line.pop("scores"), "record r5, field scores.cer: the score is missing"),
        (lambda line: line.pop("reference"), "record r5, field reference: reference is missing or no text"),
        (lambda line: line.update(prediction=None), "record r5, field prediction: prediction is missing or no text"),
        (lambda line: line["scores"].update(cer=0.0), r"mean cer is 0\.25, but 0\.45 in scores\.json: they are not"),
    ],
)
def test_broken_lines(tmp_path: Path, change: Callable[[Line], Any], message: str) -> None:
    runs = write_runs(tmp_path, CER, LOWER_CER)
    rewrite(runs, change)
    with pytest.raises(UserError, match=message) as error:
        load_runs(runs)
    assert str(error.value).startswith(str(runs.after / "predictions.jsonl"))


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"inputs": {"data": "other"}}, r"made with other data than .*model-a/predictions\.jsonl"),
        ({"evaluation": "menus"}, "evaluation is 'menus', expected 'signs'"),
        ({"checkpoint": "model-a"}, "checkpoint is 'model-a', expected 'model-b'"),
        ({"metrics": {}}, "no scores of an evaluation"),
        ({"metrics": {"anls": 0.45}}, "field scores.anls: the score is missing"),
        ({"n": 7}, r"6 records, but scores\.json counts 7"),
    ],
)
def test_scores_of_something_else(tmp_path: Path, facts: dict[str, Any], message: str) -> None:
    runs = write_runs(tmp_path, CER, LOWER_CER)
    for folder, more in ((runs.before, {"inputs": {"data": "this"}}), (runs.after, facts)):
        found = json.loads((folder / "scores.json").read_text())
        (folder / "scores.json").write_text(json.dumps({"inputs": {"data": "this"}, **found, **more}))
    with pytest.raises(UserError, match=message):
        load_runs(runs)


def test_metrics_that_differ(tmp_path: Path) -> None:
    runs = write_runs(tmp_path, CER, {**LOWER_CER, "anls": [1.0] * 6})
    with pytest.raises(UserError, match=r"metrics \['cer', 'anls'\] instead of \['cer'\]"):
        load_runs(runs)


def test_an_empty_run(tmp_path: Path) -> None:
    runs = write_runs(tmp_path, CER, LOWER_CER)
    (runs.after / "predictions.jsonl").write_text("\n")
    with pytest.raises(UserError, match="no predictions: the evaluation set is empty"):
        load_runs(runs)
