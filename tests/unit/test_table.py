"""The table over experiments: best first, every figure in the .tsv, the same in words, and what is missing is told."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from vlmflow.files import write_json
from vlmflow.report.headline import best_variant
from vlmflow.report.table import tabulate_results, tabulate_sweep

KEYS = ["finetune.learning_rate", "finetune.datasets"]


def paired(metric: str, after: float, before: float = 0.25) -> dict[str, Any]:
    return {"metric": metric, "before": before, "after": after, "difference": after - before, "ci95": [0.1, 0.6],
            "p_value": 0.01, "n": 1200, "pictures": 400}  # fmt: skip


def finish(results: Path, experiment: str, after: float, finetune: str = "", evaluation: str = "choose") -> None:
    """Leave what an experiment leaves that the table reads."""
    evaluations: list[dict[str, Any]] = [
        {"evaluation": evaluation, "metrics": [paired("exact_match", after), paired("contains", after + 0.01)]},
        {"evaluation": "held-out", "metrics": [paired("exact_match", after - 0.05)]},
    ]
    headline = {"evaluation": evaluation, **paired("exact_match", after)}
    write_json(results / "report" / experiment / "comparison.json", {"headline": headline, "evaluations": evaluations})
    for compared in evaluations:
        for end in ("before", "after"):
            metrics = {found["metric"]: found[end] for found in compared["metrics"]}
            write_json(results / "scores" / experiment / compared["evaluation"] / f"{end}.json", {"metrics": metrics})
    folder = results / "finetune" / (finetune or experiment)
    provenance = {"config": {"seed": 0}, "inputs": {"model": "0" * 64}, "vlmflow": "0.1.0", "wall_seconds": 100.0,
                  "training": {"steps": 87}, "peak_memory_mb": 1234.5, "hardware": {}}  # fmt: skip
    write_json(folder / "provenance.json", provenance)
    write_json(folder / "manifest.json", {"hash": "abcdef" * 10, "files": {}})
    lines = [json.dumps({"step": step, "loss": 2.0 if step <= 38 else step / 100}) for step in range(1, 41)]
    (folder / "metrics.jsonl").write_text("\n".join(lines))


def made(results: Path, experiment: str) -> dict[str, Any]:
    """How an experiment's comparison is made, as the plan says it, of the last step alone."""
    folder = results / "scores" / experiment
    scores = {name: [f"{folder / name / end}.json" for end in ("before", "after")] for name in ("choose", "held-out")}
    return {"steps": [], "comparison": f"{results}/report/{experiment}/comparison.json", "scores": scores}


def table(results: Path, *experiments: str) -> Path:
    rows = [[name, name, 0.001, ["a", "b|c"]] for name in experiments]
    steps = {name: made(results, name) for name in experiments}
    write_json(results / "all.json", {"title": "rates: <Digits>", "keys": KEYS, "rows": rows, "made": steps})
    return results / "all.json"


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def test_variants_are_sorted_and_told_in_full(tmp_path: Path) -> None:
    for name, after in (("low", 0.5), ("high", 0.9), ("middle", 0.75)):
        finish(tmp_path, name, after)
    output = tmp_path / "tables" / "rates" / "table.tsv"
    tabulate_sweep(table(tmp_path, "low", "high", "middle"), tmp_path, output)
    rows = read(output)
    assert [row["experiment"] for row in rows] == ["high", "middle", "low"]
    best = rows[0]
    expected = {
        "finetune.learning_rate": "0.001", "finetune.datasets": '["a", "b|c"]', "evaluation": "choose",
        "before": "0.25", "after": "0.9", "ci95_low": "0.1", "n": "1200", "choose contains": "0.91",
        "held-out exact_match": "0.85",
        "final_loss": "0.395", "train_seconds": "100.0", "peak_gpu_memory_mb": "", "adapter": "abcdefabcdef",
        "report": "../../report/high/index.html", "vlmflow": "0.1.0",
    }  # fmt: skip
    assert best.items() >= expected.items()
    assert len(best["config"]) == len(best["inputs"]) == 12
    assert (output.parent / best["report"]).resolve().parent == (tmp_path / "report" / "high").resolve()
    assert "Best of 3: high\n  choose: exact match 90.0%\n" in best_variant(output)


def test_the_best_variant_follows_the_direction_of_the_metric(tmp_path: Path) -> None:
    for name, after in (("many", 0.5), ("few", 0.1), ("some", 0.25)):
        finish(tmp_path, name, after)
        file = tmp_path / "report" / name / "comparison.json"
        comparison = json.loads(file.read_text())
        comparison["headline"]["metric"] = comparison["evaluations"][0]["metrics"][0]["metric"] = "cer"
        comparison["evaluations"][0]["metrics"][1].update(metric="cider", after=1.25)
        write_json(file, comparison)
    output = tmp_path / "table.tsv"
    tabulate_sweep(table(tmp_path, "many", "few", "some"), tmp_path, output)
    assert [row["experiment"] for row in read(output)] == ["few", "some", "many"]
    assert "Best of 3: few\n  choose: character error rate 10.0%\n" in best_variant(output)
    head, _, first, *_ = output.with_suffix(".md").read_text().splitlines()[2:]
    cells = dict(zip(*(re.split(r" +\| +", line.strip("| ")) for line in (head, first)), strict=True))
    assert cells["choose: character error rate (lower is better)"] == "10.0%"
    assert cells["choose: CIDEr"] == "125.0"


def test_readers_get_words(tmp_path: Path) -> None:
    finish(tmp_path, "high", 0.9)
    output = tmp_path / "table.tsv"
    tabulate_sweep(table(tmp_path, "high"), tmp_path, output)
    title, _, head, rule, line = output.with_suffix(".md").read_text().splitlines()
    assert title == "# rates: &lt;Digits>"
    assert len(head) == len(rule) == len(line)
    headings = re.split(r" +\| +", head.strip("| "))
    assert headings[:5] == ["experiment", "learning_rate", "datasets", "before", "choose: exact match"]
    for cell in ('["a", "b\\|c"]', "25.0%", "90.0%", "+65.0 (+10.0 to +60.0)", "1,200", "0.395", "2 min", "1.2 GB"):
        assert f" {cell} " in line
    page = output.with_suffix(".html").read_text()
    assert "<h1>rates: &lt;Digits&gt;</h1>" in page
    assert '<a href="report/high/index.html">high</a>' in page
    orders = [json.loads(text.replace("&#34;", '"')) for text in re.findall(r'data-order="([^"]*)"', page)]
    assert orders[:2] == ["high", 0.001]
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', page)


def test_what_was_measured_otherwise_is_not_ranked_with_the_rest(tmp_path: Path) -> None:
    finish(tmp_path, "a", 0.5)
    finish(tmp_path, "b", 0.9, evaluation="other")
    finish(tmp_path, "c", 0.6)
    tabulate_sweep(table(tmp_path, "a", "b", "c"), tmp_path, tmp_path / "table.tsv")
    assert [row["experiment"] for row in read(tmp_path / "table.tsv")] == ["c", "a", "b"]
    assert "| evaluation | metric " in (tmp_path / "table.md").read_text()


def test_finished_experiments_are_printed_and_missing_ones_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "tables" / "all.tsv"
    names = [f"v{number}" for number in range(8)]
    tabulate_results(table(tmp_path, *names), tmp_path, output)
    assert "0 of 8 experiments are finished; not yet: v0, v1, v2, v3, v4, ..." in capsys.readouterr().out
    assert read(output) == []
    finish(tmp_path, "v3", 0.5)
    tabulate_results(table(tmp_path, *names), tmp_path, output)
    printed = capsys.readouterr().out
    assert "1 of 8 experiments are finished; not yet: v0, v1, v2, v4, v5, ..." in printed
    assert "| v3 " in printed
    assert [row["experiment"] for row in read(output)] == ["v3"]
    for name in names:
        finish(tmp_path, name, 0.5)
    tabulate_results(table(tmp_path, *names), tmp_path, output)
    assert "\n8 of 8 experiments are finished\n" in capsys.readouterr().out


def test_what_was_made_with_other_settings_is_left_out_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        finish(tmp_path, name, 0.5)
    told = table(tmp_path, "a", "b", "c")
    table_of = json.loads(told.read_text())
    table_of["made"]["b"]["steps"] = [
        {"file": str(tmp_path / "finetune" / "b" / "provenance.json"), "settings": {"seed": 1}, "inputs": {}}
    ]
    write_json(told, table_of)
    tabulate_results(told, tmp_path, tmp_path / "all.tsv")
    note = (
        "1 of 3 experiments are finished; not yet: c; made with other settings: b (snakemake -n tells what would run)"
    )
    assert note in capsys.readouterr().out
    assert note in (tmp_path / "all.md").read_text()
    assert [row["experiment"] for row in read(tmp_path / "all.tsv")] == ["a"]
