"""What the report shows of training: the curves, also as a picture of their own, and what the model saw."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from test_render import EVIL, Elements, prediction, write_run

from vlmflow.evaluation.compare import EvaluationRuns, compare
from vlmflow.report import figures
from vlmflow.report.render import render_report


def row(step: int, **changed: Any) -> dict[str, Any]:
    known = {"step": step, "loss": 5 / step, "lr": 1e-4, "grad_norm": 0.5, "samples_per_s": 20.0, "tokens_per_s": 4e4,
             "mfu": 0.5, "data_wait": 0.004, "memory_gb": 31.4, "seconds": 60.0 * step}  # fmt: skip
    return {**known, **changed}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Folder of a page of one record, with a hostile training sample."""
    Image.new("L", (8, 8), 200).save(tmp_path / "x.png")
    runs = [write_run(tmp_path / label, [prediction("r", "y", str(tmp_path / "x.png"))]) for label in ("one", "two")]
    evaluation = EvaluationRuns("digits", *runs)
    compare({"name": "demo"}, [evaluation], tmp_path / "comparison.json")
    log = tmp_path / "metrics.jsonl"
    log.write_text("".join(json.dumps(row(step)) + "\n" for step in range(1, 101)))
    example = {"id": "<i>", "tokens": 2000, "supervised_tokens": 3,
               "parts": [[f"{EVIL}\n<IMG_CONTEXT> x 1792\n", False], ["<b>yes</b>", True], ["\n", False]]}  # fmt: skip
    (tmp_path / "example.json").write_text(json.dumps(example))
    Image.new("RGBA", (4, 4)).save(tmp_path / "example.png")
    render_report(
        tmp_path / "comparison.json", [evaluation], tmp_path / "report" / "index.html", "x",
        metrics_logs={f"pretrain {EVIL}": str(log), "finetune": str(log)}, example=tmp_path / "example.json",
    )  # fmt: skip
    return tmp_path / "report"


def test_the_supervised_part_is_marked_and_hostile_text_stays_text(folder: Path) -> None:
    page = (folder / "index.html").read_text()
    assert "<mark>&lt;b&gt;yes&lt;/b&gt;</mark>" in page
    assert "&lt;IMG_CONTEXT&gt; x 1792" in page
    assert EVIL not in page
    assert "2,000 tokens" in page
    assert 'href="../example.json"' in page
    pictures = [attributes for tag, attributes in Elements(page).tags if tag == "img"]
    assert [picture["src"][:22] for picture in pictures] == ["data:image/png;base64,"]


def test_the_curves_are_a_picture_of_their_own(folder: Path) -> None:
    """Programs that know neither variables nor the page's style sheet can draw it."""
    text = (folder / "loss.svg").read_text()
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    kinds = [line.get("class") for line in root.iter("{http://www.w3.org/2000/svg}polyline")]
    assert kinds == ["raw", "smooth", "small", "small"] * 2
    assert "var(" not in text
    styles = root.findtext("{http://www.w3.org/2000/svg}style") or ""
    light, dark = styles.split("@media (prefers-color-scheme: dark)")
    assert ".ground { fill: #fff; }" in light
    assert re.search(r"\.ground \{ fill: #1\w+; \}", dark)
    assert 'href="loss.svg"' in (folder / "index.html").read_text()


def test_the_caption_tells_how_fast_it_was() -> None:
    caption = figures.loss_figure("finetune", [row(1), row(2), row(3, samples_per_s=1.0)])["caption"]
    assert caption == (
        "3 steps; loss 5 at first, 1.67 at the end; peak learning rate 0.0001; 20 samples/s; 40,000 tokens/s;"
        " 50% of the arithmetic peak; 0.4% of the time waiting for data; 31.4 GB; 0:03:00 h."
    )


def test_what_was_not_measured_has_no_panel() -> None:
    bare = [{"step": step, "loss": 1.0, "mfu": None, "grad_norm": None} for step in (1, 2)]
    figure = figures.loss_figure("old", bare)
    assert figure["caption"] == "2 steps; loss 1 at first, 1 at the end."
    assert figure["svg"].count("polyline") == 1
    assert figures.loss_figure("new", [row(1), row(2)])["height"] > figure["height"]


def test_the_last_value_does_not_bend_the_smoothed_curve() -> None:
    flat = [(float(x), 1.0) for x in range(60)]
    assert figures.smooth([*flat, (60.0, 2.0)], 9)[-1][1] < 1.5
    assert figures.smooth([(3.0, 7.0)], 9) == [(3.0, 7.0)]


def test_a_run_without_a_step_is_drawn_as_nothing() -> None:
    assert "polyline class" not in figures.picture([figures.loss_figure("pretrain", [])])
