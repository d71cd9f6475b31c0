"""Metrics in both directions, units, forgetting, regressions, several tests at once, the table to compute with."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from vlmflow.evaluation import summary
from vlmflow.evaluation.compare import EvaluationRuns, compare, measure, outcome
from vlmflow.evaluation.statistics import holm_adjusted

Scores = dict[str, list[float]]


def write_run(folder: Path, scores: Scores, **facts: Any) -> Path:
    """A run with these scores by metric; records r0, r1, ... are of the categories even and odd."""
    columns = [dict(zip(scores, row, strict=True)) for row in zip(*scores.values(), strict=True)]
    lines = [
        {"id": f"r{i}", "category": "odd" if i % 2 else "even", "images": [f"{i}.png"], "question": "what is written?",
         "reference": "sign", "prediction": "sgin", "scores": row}
        for i, row in enumerate(columns)
    ]  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    means = {name: sum(column) / len(column) for name, column in scores.items()}
    (folder / "scores.json").write_text(json.dumps({"n": len(lines), "metrics": means, **facts}))
    return folder


def write_runs(root: Path, before: Scores, after: Scores, name: str = "signs", **more: Any) -> EvaluationRuns:
    ends = (write_run(root / name / f"model-{end}", scores) for end, scores in (("a", before), ("b", after)))
    return EvaluationRuns(name, *ends, **more)


def compared(root: Path, *evaluations: EvaluationRuns) -> dict[str, Any]:
    compare({"name": "demo"}, list(evaluations), root / "comparison.json")
    found: dict[str, Any] = json.loads((root / "comparison.json").read_text())
    return found


CER = {"cer": [0.8, 0.6, 0.5, 0.9, 0.0, 0.7]}
LOWER_CER = {"cer": [0.2, 0.7, 0.5, 0.1, 0.0, 1.2]}  # r5 lost more than r1; r2 and r4 stay


def test_a_lower_error_rate_is_a_win(tmp_path: Path) -> None:
    (found,) = compared(tmp_path, write_runs(tmp_path, CER, LOWER_CER))["evaluations"]
    assert (found["better"], found["unit"]) == ("lower", "%")
    assert found["difference"] == pytest.approx(2.7 / 6 - 3.5 / 6)
    assert (found["wins"], found["losses"], found["ties"]) == (2, 2, 2)
    assert found["regressions"] == ["r5", "r1"]
    assert found["records"] == {"improved": ["r0", "r3"], "still_wrong": ["r2"]}
    assert found["worse_categories"] == []
    assert found["categories"]["even"]["better"] == "lower"
    assert found["systems"][0]["after_minus_this"]["wins"] == 2


def test_categories_that_got_worse_come_worst_first(tmp_path: Path) -> None:
    scores = {"cer": [0.1, 0.1, 0.1, 0.1]}, {"cer": [0.3, 0.9, 0.2, 0.7]}
    (found,) = compared(tmp_path, write_runs(tmp_path, *scores))["evaluations"]
    assert found["worse_categories"] == ["odd", "even"]
    text = (tmp_path / "comparison.md").read_text()
    assert "4 got worse (`r1`, `r3`, `r0`, `r2`), 0 improved, 0 unchanged." in text
    assert "Categories that got worse on average: odd +70.0 points" in text
    assert text.index("got worse") < text.index("| Base model |")
    assert text.index("| odd | 10.0% | 80.0% |") < text.index("| even |")


def test_outcome_of_both_directions() -> None:
    assert [outcome(0.5, after, "cer") for after in (0.2, 0.5, 0.9)] == ["improved", "still_wrong", "worse"]
    assert (outcome(0, 0, "cer"), outcome(0, 0, "anls"), outcome(1, 1, "cer")) == (
        "right", "still_wrong", "still_wrong")  # fmt: skip


def test_right_is_the_best_score_of_the_metric() -> None:
    ties = [("cider", 1.2), ("cider", 10.000000000000002), ("of another tool", 1.0), ("of another tool", 0.5)]
    assert [outcome(score, score, metric) for metric, score in ties] == ["still_wrong", "right", "right", "still_wrong"]


def test_one_picture_leaves_the_whole_scale_of_the_metric(tmp_path: Path) -> None:
    runs = write_runs(tmp_path, {"cider": [1.0], "cer": [1.4]}, {"cider": [3.0], "cer": [0.2]})
    cider, cer = compared(tmp_path, runs)["evaluations"][0]["metrics"]
    assert (cider["ci95"], cider["after_ci95"]) == ([-10, 10], [0, 10])
    assert (cer["ci95"], cer["before_ci95"], cer["after_ci95"]) == ([-1.4 + 0.2, 1.4 - 0.2], [0, 1.4], [0, 1])


@pytest.mark.parametrize(
    ("better", "interval", "word"),
    [("higher", (0.1, 0.2), "better"), ("higher", (-0.2, -0.1), "worse"), ("lower", (0.1, 0.2), "worse"),
     ("lower", (-0.2, -0.1), "better"), ("lower", (-0.1, 0.1), "undecided"), ("higher", (0.0, 0.1), "undecided")],
)  # fmt: skip
def test_verdict(better: str, interval: tuple[float, float], word: str) -> None:
    assert summary.verdict({"better": better, "ci95": interval}) == word


def test_units_in_words(tmp_path: Path) -> None:
    scores = {"cider": [1.0, 1.5], "cer": [0.5, 0.3]}, {"cider": [1.2, 1.7], "cer": [0.2, 0.2]}
    compared(tmp_path, write_runs(tmp_path, *scores))
    text = (tmp_path / "comparison.md").read_text()
    assert "signs: CIDEr 125.0 -> 145.0 (+20.0 points" in text
    assert "| character error rate | 40.0% | 20.0% | \N{MINUS SIGN}20.0 |" in text
    headline = json.loads((tmp_path / "comparison.json").read_text())["evaluations"][0]["metrics"][1]
    assert "character error rate (lower is better) 40.0% -> 20.0%" in summary.sentence({"evaluation": "s", **headline})


def test_metrics_of_other_tools_are_scores() -> None:
    assert measure("cer") == {"better": "lower", "unit": "%"}
    assert measure("mme_perception") == {"better": "higher", "unit": "own"}


def test_labels() -> None:
    words = [summary.plain(name) for name in ("blank", "adapter", "merged", "model-my_base", "exact_match")]
    assert words == ["Fine-tuned, grey pictures", "Fine-tuned, adapter not merged", "Fine-tuned, merged",
                     "model-my_base", "exact match"]  # fmt: skip


def test_runs_without_the_right_pictures_come_last(tmp_path: Path) -> None:
    runs = write_runs(tmp_path, CER, LOWER_CER)
    runs.others = {name: write_run(tmp_path / "signs" / f"x-{name}", CER) for name in ("blind", "blank", "merged")}
    (found,) = compared(tmp_path, runs)["evaluations"]
    assert [row["label"] for row in found["systems"]] == ["before", "merged", "after", "blind", "blank"]


@pytest.mark.parametrize(
    ("after", "sentence"),
    [
        ([0.45, 0.55] * 20, "No forgetting is shown: the interval includes 0. A loss of more than 1."),
        ([0.4] * 36 + [0.5] * 4, "Something was forgotten: general ability got worse by 9.0 points."),
        ([0.6] * 39 + [0.5], "Nothing was forgotten: general ability got better."),
    ],
)
def test_forgetting(tmp_path: Path, after: list[float], sentence: str) -> None:
    runs = write_runs(tmp_path, {"anls": [0.5] * 40}, {"anls": after}, general=True)
    (found,) = compared(tmp_path, runs)["evaluations"]
    assert found["general"] is True
    assert sentence in (tmp_path / "comparison.md").read_text()


def test_p_values_of_categories_and_metrics_are_adjusted_and_the_headline_is_not(tmp_path: Path) -> None:
    before = {"exact_match": [0.0] * 40, "contains": [0.0] * 40}
    after = {"exact_match": [1.0, 0.0] * 9 + [0.0] * 22, "contains": [1.0] * 6 + [0.0] * 34}
    (found,) = compared(tmp_path, write_runs(tmp_path, before, after))["evaluations"]
    for family in (found["metrics"], list(found["categories"].values())):
        expected = holm_adjusted([row["p_value"] for row in family])
        assert [row["p_holm"] for row in family] == pytest.approx(expected)
    assert found["p_value"] == found["metrics"][0]["p_value"] < found["metrics"][0]["p_holm"]
    assert "p_holm" not in found


def test_parity_is_copied_and_told(tmp_path: Path) -> None:
    parity = {"checkpoint": "model-b", "n": 32, "equal": 31, "engines": [], "differences": [{"id": "r0"}]}
    (tmp_path / "parity.json").write_text(json.dumps(parity))
    runs = write_runs(tmp_path, CER, LOWER_CER, parity=tmp_path / "parity.json")
    assert compared(tmp_path, runs)["evaluations"][0]["parity"] == parity
    assert "The same in both engines: 31 of 32 answers." in (tmp_path / "comparison.md").read_text()


def test_a_baseline_without_the_headline_metric_is_left_out(tmp_path: Path) -> None:
    row = {"n": 6, "metrics": {"anls": 0.5}, "ci95": {"anls": [0.2, 0.8]}, "categories": {}}
    baselines = tmp_path / "baselines.json"
    baselines.write_text(json.dumps({"n": 6, "majority": row, "nearest_neighbour": None}))
    runs = write_runs(tmp_path, CER, LOWER_CER, baselines=baselines)
    assert [system["label"] for system in compared(tmp_path, runs)["evaluations"][0]["systems"]] == ["before", "after"]


def test_the_tidy_table_has_every_figure_once(tmp_path: Path) -> None:
    before, after = {**CER, "anls": [0.1] * 6}, {**LOWER_CER, "anls": [0.4] * 6}
    runs = write_runs(tmp_path, before, after)
    runs.others = {"merged": write_run(tmp_path / "signs" / "merged-x", after)}
    general = write_runs(tmp_path, {"cer": [0.1, 0.2]}, {"cer": [0.1, 0.3]}, "general, of all", general=True)
    found = compared(tmp_path, runs, general)
    with (tmp_path / "comparison.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    keys = [tuple(row[key] for key in ("evaluation", "metric", "category", "kind", "system")) for row in rows]
    assert len(keys) == len(set(keys))
    by_key = dict(zip(keys, rows, strict=True))
    evaluation = found["evaluations"][0]
    overall = by_key["signs", "cer", "", "difference", "after - before"]
    assert float(overall["value"]) == evaluation["difference"]
    assert [float(overall["ci95_low"]), float(overall["ci95_high"])] == evaluation["ci95"]
    assert float(overall["p_holm"]) == evaluation["metrics"][0]["p_holm"]
    assert (overall["better"], overall["unit"], overall["wins"], overall["general"]) == ("lower", "%", "2", "false")
    odd = by_key["signs", "cer", "odd", "score", "merged"]
    assert float(odd["value"]) == evaluation["systems"][1]["categories"]["odd"]
    assert (odd["n"], odd["checkpoint"], odd["ci95_low"], odd["p_value"]) == ("3", "merged-x", "", "")
    assert float(by_key["signs", "anls", "", "score", "after"]["value"]) == pytest.approx(0.4)
    assert ("signs", "cer", "", "difference", "after - merged") in by_key
    assert by_key["general, of all", "cer", "even", "difference", "after - before"]["general"] == "true"
