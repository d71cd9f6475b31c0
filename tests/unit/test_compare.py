import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlmflow.errors import UserError
from vlmflow.evaluation.compare import EvaluationRuns, compare, load_runs, outcome
from vlmflow.evaluation.scores import score_predictions
from vlmflow.evaluation.statistics import difference_interval, mcnemar_test, wilson_interval

ANSWERS = {"before": "nnnnnnyy", "pretrained": "nnnnyyyy", "after": "yyyyynyn", "blind": "nnnnnnnn"}  # y: right


def write_run(root: Path, checkpoint: str, pattern: str, per_picture: int = 1, evaluation: str = "digits") -> Path:
    """A run whose n-th answer is right where ``pattern`` has a ``y``; records are named r0, r1, ..."""
    lines = [
        {
            "id": f"r{i}",
            "category": "odd" if i % 2 else "even",
            "images": [f"pictures/{i // per_picture}.png"],
            "question": "which digit?",
            "reference": "y",
            "prediction": mark,
        }
        for i, mark in enumerate(pattern)
    ]
    scored, found = score_predictions(lines, ["exact_match", "contains"])
    directory = root / evaluation / checkpoint
    directory.mkdir(parents=True)
    (directory / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in scored))
    (directory / "scores.json").write_text(json.dumps({"evaluation": evaluation, "checkpoint": checkpoint, **found}))
    return directory


def write_runs(root: Path, per_picture: int = 1, **patterns: str) -> EvaluationRuns:
    found = {label: write_run(root, f"model-{label}", text, per_picture) for label, text in patterns.items()}
    return EvaluationRuns("digits", found.pop("before"), found.pop("after"), found)


def compared(root: Path, *evaluations: EvaluationRuns) -> dict[str, Any]:
    compare({"name": "demo"}, list(evaluations), root / "comparison.json")
    found: dict[str, Any] = json.loads((root / "comparison.json").read_text())
    return found


def test_headline_of_independent_records(tmp_path: Path) -> None:
    found = compared(tmp_path, write_runs(tmp_path, **ANSWERS))
    difference = np.array([1.0] * 5 + [0.0, 0.0, -1.0])
    assert found["headline"] == {
        "evaluation": "digits",
        "metric": "exact_match",
        "better": "higher",
        "unit": "%",
        "before": 2 / 8,
        "after": 6 / 8,
        "difference": 4 / 8,
        "ci95": list(difference_interval(difference)),
        "p_value": mcnemar_test(5, 1),
        "test": "McNemar's exact test",
        "n": 8,
        "pictures": 8,
        "wins": 5,
        "losses": 1,
        "ties": 2,
    }
    (evaluation,) = found["evaluations"]
    assert evaluation["before_ci95"] == list(wilson_interval(2 / 8, 8))
    assert evaluation["after_ci95"] == list(wilson_interval(6 / 8, 8))
    assert evaluation["regressions"] == ["r7"]
    assert evaluation["records"] == {"improved": ["r0", "r1", "r2", "r3", "r4"], "still_wrong": ["r5"]}
    assert {name: row["difference"] for name, row in evaluation["categories"].items()} == {"even": 3 / 4, "odd": 1 / 4}
    assert [row["metric"] for row in evaluation["metrics"]] == ["exact_match", "contains"]


def test_systems_come_in_order_with_their_distance_to_the_last(tmp_path: Path) -> None:
    runs = write_runs(tmp_path, **ANSWERS)
    row = {
        "n": 8,
        "metrics": {"exact_match": 0.5},
        "ci95": {"exact_match": [0.2, 0.8]},
        "categories": {"odd": {"n": 4, "exact_match": 0.25}},
    }
    runs.baselines = tmp_path / "baselines.json"
    runs.baselines.write_text(json.dumps({"n": 8, "majority": row, "nearest_neighbour": None}))
    systems = compared(tmp_path, runs)["evaluations"][0]["systems"]
    assert [(row["label"], row["value"]) for row in systems] == [
        ("before", 0.25),
        ("pretrained", 0.5),
        ("after", 0.75),
        ("blind", 0.0),
        ("majority", 0.5),
    ]
    assert systems[3]["after_minus_this"]["difference"] == 0.75
    assert systems[2]["after_minus_this"] is None
    assert systems[4]["categories"] == {"odd": 0.25}

    runs.baselines.write_text(json.dumps({"n": 9, "majority": row}))
    with pytest.raises(UserError, match="9 records, but 8 were evaluated"):
        compared(tmp_path, runs)


def test_records_on_one_picture_are_kept_together(tmp_path: Path) -> None:
    alone = compared(tmp_path, write_runs(tmp_path / "a", before="nnnnnnnnnnnn", after="yyyyyyyyynnn"))["headline"]
    grouped = compared(tmp_path, write_runs(tmp_path / "b", 3, before="nnnnnnnnnnnn", after="yyyyyyyyynnn"))["headline"]
    assert (alone["pictures"], grouped["pictures"]) == (12, 4)
    assert grouped["difference"] == alone["difference"]
    assert grouped["p_value"] == pytest.approx(2 / 8)  # three pictures got better: 2 of 2**3 patterns of signs
    assert grouped["test"] == "exact sign-flip test by picture"
    assert grouped["ci95"][0] < alone["ci95"][0]


def test_markdown_is_written_beside(tmp_path: Path) -> None:
    compared(tmp_path, write_runs(tmp_path, **ANSWERS))
    text = (tmp_path / "comparison.md").read_text()
    assert "**digits: exact match 25.0% -> 75.0% (+50.0 points, 95% CI " in text
    assert "| Fine-tuned, pictures shuffled | 0.0% |" in text
    assert "| even | 25.0% | 100.0% | +75.0 |" in text
    assert "1 got worse (`r7`), 5 improved, 2 unchanged." in text


def test_outcome() -> None:
    pairs = (0, 1), (1, 0.5), (0, 0), (0.5, 0.5), (1, 1)
    assert [outcome(*pair, "anls") for pair in pairs] == ["improved", "worse", "still_wrong", "still_wrong", "right"]


def test_other_records_are_refused_with_file_and_ids(tmp_path: Path) -> None:
    runs = write_runs(tmp_path, before="nnn", after="yyyyyyyyyy")
    with pytest.raises(UserError) as error:
        load_runs(runs)
    message = str(error.value)
    assert "model-after/predictions.jsonl: compared with" in message
    assert "7 are not in it (r3, r4, r5, r6, r7, ...)" in message
    assert f"delete {runs.before} and {runs.after} and run snakemake again" in message


def test_lines_of_another_run_are_refused(tmp_path: Path) -> None:
    runs = write_runs(tmp_path, **ANSWERS)
    file = runs.after / "predictions.jsonl"
    whole = file.read_text()

    file.write_text(whole.replace("which digit?", "which one?", 1))
    with pytest.raises(UserError, match="record r0, field question: question differs"):
        load_runs(runs)
    file.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match=r"7 records, but scores\.json counts 8"):
        load_runs(runs)
    file.write_text(whole + whole.splitlines(keepends=True)[0])
    with pytest.raises(UserError, match="record r0: the record is there twice"):
        load_runs(runs)
    file.write_text(whole[:-20])
    with pytest.raises(UserError, match="line 8 is not a prediction"):
        load_runs(runs)
    file.write_bytes(whole.encode()[:-3] + b"\xff\n")
    with pytest.raises(UserError, match="not UTF-8"):
        load_runs(runs)
    file.unlink()
    with pytest.raises(UserError, match="no such file"):
        load_runs(runs)


def test_predictions_of_another_checkpoint_are_refused(tmp_path: Path) -> None:
    runs = write_runs(tmp_path, **ANSWERS)
    for name in ("scores.json", "predictions.jsonl"):
        (runs.after / name).write_text((runs.before / name).read_text())
    with pytest.raises(UserError, match="checkpoint is 'model-before', expected 'model-after'"):
        load_runs(runs)


def test_no_evaluation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no evaluation to compare"):
        compare({}, [], tmp_path / "comparison.json")
