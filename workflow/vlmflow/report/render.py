"""index.html of an experiment: one file with everything in it, that opens without a network."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from vlmflow.errors import UserError
from vlmflow.evaluation import summary
from vlmflow.evaluation.compare import EvaluationRuns, load_runs
from vlmflow.files import read_json, write_text
from vlmflow.report import figures, gallery, sources, words
from vlmflow.report.templates import templates

_FOLDER = Path(__file__).resolve().parent
_KINDS = {"before": "before", "after": "after"}  # systems with a colour of their own; the rest are "other"
_STYLES = ("render.css", "render.gallery.css", "render.print.css")
_SCRIPTS = ("render.differences.js", "render.cards.js", "render.viewer.js", "render.js")  # one script, in this order


def render_report(
    comparison: Path,
    evaluations: list[EvaluationRuns],
    output: Path,
    title: str,
    metrics_logs: dict[str, str] | None = None,
    provenance: list[Path] | None = None,
    data_reports: list[Path] | None = None,
    example: Path | None = None,
    commands: list[str] | None = None,
    limit: int = gallery.LIMIT,
) -> None:
    """Write the self-contained page ``output``, and its loss curves beside it as loss.svg.

    ``comparison`` and ``evaluations`` are the output and the input of :func:`vlmflow.evaluation.compare.compare`.
    ``metrics_logs`` maps the name of a training stage to its metrics.jsonl; ``provenance`` are provenance.json files,
    ``data_reports`` report.json files of the data stage, ``example`` is the example.json of a training stage, with
    its picture beside it, ``commands`` are the lines that reproduce the experiment. At most ``limit`` samples are
    shown.
    """
    found, folder = read_json(comparison), output.parent
    compared = found["evaluations"]
    shown, total = gallery.samples(_pairs(evaluations), limit)
    blocks = gallery.embed_pictures(shown, folder)
    curves = [figures.loss_figure(name, read_log(Path(path))) for name, path in (metrics_logs or {}).items()]
    script = '"use strict";\n' + _texts(_SCRIPTS)
    context = {
        "title": title,
        "experiment": found["experiment"],
        "headline": next(one for one in compared if one["evaluation"] == found["headline"]["evaluation"]),
        "evaluations": [one for one in compared if not one["general"]],
        "general": [one for one in compared if one["general"]],
        "several": len(compared) > 1,
        "regressions": words.regressions(compared),
        "tests": sorted({one["test"] for one in compared}),
        "curves": curves,
        "gallery": {
            "counts": gallery.counts(shown),
            "shown": len(shown),
            "total": total,
            "block": gallery.BLOCK,
            "tiny": gallery.PIXELATED,
            "boxes": any("boxes" in sample for sample in shown),
        },
        "samples": embedded_json(shown),
        "pictures": [embedded_json(block) for block in blocks],
        "stages": [sources.stage(path) for path in provenance or []],
        "data": [sources.data_report(path, folder) for path in data_reports or []],
        "runs": sources.runs(evaluations, folder),
        "tables": sources.tables(comparison, folder),
        "example": sources.example(example, folder) if example else None,
        "commands": commands or [],
        "styles": Markup(figures.STYLES + _texts(_STYLES)),
        "script": Markup(script),
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
    }
    if curves:
        write_text(output.with_name("loss.svg"), figures.picture(curves))
    page = _environment().get_template("render.html.j2").render(context)
    write_text(output, page.encode("utf-8", "replace").decode("utf-8"))


def embedded_json(value: Any) -> Markup:
    """JSON for a ``<script type="application/json">`` element: no ``<`` is left that could end it."""
    return Markup(json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"))


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl that have a step; a line torn by a killed job is left out."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        raise UserError("no such file", "delete the stage's folder and run snakemake again", file=path) from None
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "step" in row:
            rows.append(row)
    return rows


def _texts(names: tuple[str, ...]) -> str:
    return "".join((_FOLDER / name).read_text(encoding="utf-8") for name in names)


def _environment() -> Environment:
    environment = templates()
    for function in (summary.points, summary.points_between, summary.p_value, summary.plain, summary.count,
                     summary.verdict, summary.score, summary.score_between, summary.worst_first, summary.forgetting,
                     words.heading, words.adjusted_p, words.engine, words.got_worse, words.blind_notes):  # fmt: skip
        environment.filters[function.__name__] = function
    environment.globals.update(
        scale=figures.scale,
        top_of=_top_of,
        interval_bar=_interval_bar,
        before_and_after=_before_and_after,
        majority=_majority,
        outcomes=gallery.OUTCOMES,
    )
    return environment


def _pairs(evaluations: list[EvaluationRuns]) -> dict[str, Any]:
    pairs = {runs.name: load_runs(dataclasses.replace(runs, others={})) for runs in evaluations}
    return {name: (pair["before"], pair["after"]) for name, pair in pairs.items()}


def _top_of(evaluation: dict[str, Any]) -> float:
    """The upper end of the scale that an evaluation's figures share."""
    ends = [system["ci95"][1] for system in evaluation["systems"]]
    ends += [found[f"{end}_ci95"][1] for found in evaluation["categories"].values() for end in ("before", "after")]
    return figures.top_of(ends)


def _interval_bar(system: dict[str, Any], top: float) -> Markup:
    return figures.interval_bar(system["value"], system["ci95"], _KINDS.get(system["label"], "other"), top)


def _before_and_after(found: dict[str, Any], marks: list[float], top: float) -> Markup:
    before, after = ({"value": found[end], "ci95": found[f"{end}_ci95"]} for end in ("before", "after"))
    return figures.before_and_after(before, after, marks, top)


def _majority(evaluation: dict[str, Any], category: str) -> list[float]:
    """The most frequent answer's score in a category, if that baseline was made."""
    rows = [row["categories"] for row in evaluation["systems"] if row["label"] == "majority"]
    return [row[category] for row in rows if category in row]
