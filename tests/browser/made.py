"""Reports of made-up answers, with what a page may meet: boxes, several scripts, long and hostile texts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from vlmflow.evaluation.compare import EvaluationRuns, compare
from vlmflow.report.render import render_report

EVIL = '</script><script>window.hacked=1;alert(1)</script><img src=x onerror="window.hacked=2">\u202e'
SIZE = (640, 400)

Line = dict[str, Any]


def make_picture(path: Path, number: int) -> Path:
    """A picture of a coloured rectangle from (160, 100) to (320, 300) of 640 x 400."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", SIZE, (200 + number % 40, 214, 226))
    ImageDraw.Draw(picture).rectangle((160, 100, 320, 300), fill=(90, 40 + 9 * (number % 20), 120))
    picture.save(path, quality=90)
    return path


def line(name: str, picture: Path | None, before: str, after: str, reference: str, **changed: Any) -> Line:
    """One record with both answers; ``scores`` are those of (before, after), by default whether they are right."""
    images = {"images": [str(picture)], "sizes": [list(SIZE)]} if picture else {"images": [], "sizes": []}
    known = {"id": name, "category": "colour", **images, "question": "<image>\nWhich colour?", "reference": reference,
             "answers": (before, after), "scores": (float(before == reference), float(after == reference)),
             "finish": ("stop", "stop")}  # fmt: skip
    return {**known, **changed}


def lines(folder: Path) -> list[Line]:
    """24 records: one of each thing that a page may meet, then plain ones."""
    picture = [make_picture(folder / "pictures" / f"{number}.jpg", number) for number in range(24)]
    boxed = {"category": "where", "question": "<image>\nWhere is the rectangle?", "scores": (0.0, 1.0)}
    right = "<ref>rectangle</ref><box>[[250, 250, 500, 750]]</box>"
    words = {"category": "describe", "scores": (0.4, 0.8), "question": "<image>\nDescribe the picture."}
    found = [
        line("worse-1", picture[0], "red", "green", "red"),
        line("worse-2", picture[1], "blue", "teal", "blue", category="shade"),
        line("box-1", picture[2], "<box>[[100,100,400,600]]</box>", "<box>[[260,240,500,760]]</box>", right, **boxed),
        line("box-2", picture[3], "at (12 oops", "[0.25, 0.25, 0.5, 0.75]", right, **boxed),
        line("box-3", picture[4], "<box>[[5, 5, 1, 1]]</box>", "[160, 100, 320, 300]", right, **boxed),
        line("words", picture[5], "a small red house on a hill", "a large red house on a green hill",
             "a large red house on the hill", **words),
        line("chinese", picture[6], "这是一只猫", "这是一只小狗", "这是一只小狗", question="<image>\n这是什么？",
             references=["这是一只小狗", "小狗"]),
        line("arabic", picture[7], "هذا بيت كبير", "هذا بيت صغير", "هذا بيت صغير", question="<image>\nما هذا؟"),
        line("evil", picture[8], EVIL, f"{EVIL} yes", EVIL, category=EVIL, question=f"<image>{EVIL}"),
        line("unbroken", picture[9], "w" * 5_000, "w" * 4_999 + "x", "w", question="q" * 900),
        line("long", picture[10], "word " * 4_000, "word " * 3_999 + "other", "word", finish=("length", "length")),
        line("long-chinese", picture[11], "猫" * 20_000, "狗" * 20_000, "猫", finish=("length", "stop")),
        line("broken", picture[12], "\ud800", "", "red"),
        line("blind", None, "red", "red", "red", question="No picture?"),
    ]  # fmt: skip
    plain = ((f"plain-{number}", picture[number]) for number in range(14, 24))
    return found + [line(name, path, "red", "blue" if name != "plain-20" else "red", "blue") for name, path in plain]


def write_runs(
    folder: Path, name: str, found: Sequence[Line], metrics: Sequence[str] = ("exact_match",)
) -> EvaluationRuns:
    """Both runs of an evaluation; a score counts for every metric."""
    runs = []
    for end, label in enumerate(("model-base", "converted-tuned")):
        run = folder / name / label
        run.mkdir(parents=True)
        runs.append(run)
        made = [
            {**{key: value for key, value in one.items() if key != "answers"}, "prediction": one["answers"][end],
             "finish": one["finish"][end], "scores": dict.fromkeys(metrics, one["scores"][end])}
            for one in found
        ]  # fmt: skip
        (run / "predictions.jsonl").write_text("".join(json.dumps(one) + "\n" for one in made), encoding="utf-8")
        means = {metric: sum(one["scores"][metric] for one in made) / len(made) for metric in metrics}
        scores = {"evaluation": name, "checkpoint": label, "n": len(made), "metrics": means, "categories": {}}
        (run / "scores.json").write_text(json.dumps(scores), encoding="utf-8")
    return EvaluationRuns(name, *runs)


def make_page(folder: Path, evaluations: Iterable[EvaluationRuns], title: str = "Rectangles") -> Path:
    """The report of these evaluations, with a training log, provenance and commands."""
    found = list(evaluations)
    compare({"name": "rectangles", "title": title}, found, folder / "report" / "comparison.json")
    log = [{"step": step, "loss": 4 / step + 0.1 * (step % 3), "lr": 1e-3 / step} for step in range(1, 80)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    provenance = folder / "finetune" / "tuned" / "provenance.json"
    provenance.parent.mkdir(parents=True, exist_ok=True)
    provenance.write_text(json.dumps({"config": {"seed": 17}, "vlmflow": "0.1.0", "packages": {"torch": "2.13.0"}}))
    page = folder / "report" / "index.html"
    render_report(folder / "report" / "comparison.json", found, page, title, commands=["snakemake rectangles"],
                  metrics_logs={"finetune": str(folder / "metrics.jsonl")}, provenance=[provenance])  # fmt: skip
    return page
