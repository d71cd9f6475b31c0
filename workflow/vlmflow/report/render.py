"""index.html of an experiment: one file with everything in it, that opens without a network."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from vlmflow.errors import UserError
from vlmflow.evaluation import summary
from vlmflow.evaluation.compare import EvaluationRuns, load_runs
from vlmflow.files import read_json, write_text
from vlmflow.report import figures, gallery
from vlmflow.report.templates import templates

_FOLDER = Path(__file__).resolve().parent
_KINDS = {"before": "before", "after": "after"}  # systems with a colour of their own; the rest are "other"
_LONGEST_FILE = 100_000  # characters of a file shown in full


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
    found = read_json(comparison)
    shown, total = gallery.samples(_runs(evaluations), limit)
    blocks = gallery.embed_pictures(shown)
    curves = [figures.loss_figure(name, read_log(Path(path))) for name, path in (metrics_logs or {}).items()]
    page = _environment().get_template("render.html.j2")
    script = (_FOLDER / "render.js").read_text(encoding="utf-8")
    context = {
        "title": title,
        "experiment": found["experiment"],
        "headline": found["headline"],
        "evaluations": found["evaluations"],
        "curves": curves,
        "gallery": {
            "counts": gallery.counts(shown),
            "shown": len(shown),
            "total": total,
            "block": gallery.BLOCK,
            "tiny": gallery.PIXELATED,
        },
        "samples": embedded_json(shown),
        "pictures": [embedded_json(block) for block in blocks],
        "stages": [_stage(path) for path in provenance or []],
        "data": [_data_report(path, output.parent) for path in data_reports or []],
        "example": _example(example) if example else None,
        "commands": commands or [],
        "styles": Markup(figures.STYLES + (_FOLDER / "render.css").read_text(encoding="utf-8")),
        "script": Markup(script),
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
    }
    if curves:
        write_text(output.with_name("loss.svg"), figures.picture(curves))
    write_text(output, page.render(context))


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


def _environment() -> Environment:
    environment = templates()
    for function in (summary.percent, summary.points, summary.between, summary.points_between, summary.p_value,
                     summary.plain, summary.count, summary.verdict):  # fmt: skip
        environment.filters[function.__name__] = function
    environment.globals.update(
        scale=figures.scale,
        interval_bar=_interval_bar,
        before_and_after=_before_and_after,
        majority=_majority,
        blind_note=blind_note,
    )
    return environment


def _runs(evaluations: list[EvaluationRuns]) -> dict[str, Any]:
    pairs = {runs.name: load_runs(dataclasses.replace(runs, others={})) for runs in evaluations}
    return {name: (pair["before"], pair["after"]) for name, pair in pairs.items()}


def _interval_bar(system: dict[str, Any]) -> Markup:
    return figures.interval_bar(system["value"], system["ci95"], _KINDS.get(system["label"], "other"))


def _before_and_after(found: dict[str, Any], marks: list[float]) -> Markup:
    before, after = ({"value": found[end], "ci95": found[f"{end}_ci95"]} for end in ("before", "after"))
    return figures.before_and_after(before, after, marks)


def _majority(evaluation: dict[str, Any], category: str) -> list[float]:
    """The most frequent answer's score in a category, if that baseline was made."""
    rows = [row["categories"] for row in evaluation["systems"] if row["label"] == "majority"]
    return [row[category] for row in rows if category in row]


def blind_note(evaluation: dict[str, Any]) -> str | None:
    """What the blind run says of whether the pictures are used."""
    blind = next((row for row in evaluation["systems"] if row["label"] == "blind"), None)
    if blind is None:
        return None
    lost = blind["after_minus_this"]
    cost = f"{summary.points(lost['difference'])} points (95% CI {summary.points_between(lost['ci95'])})"
    if summary.verdict(lost) == "better":
        return f"The right picture is worth {cost} to the fine-tuned model: it looks at the pictures."
    return f"The right picture is worth {cost} to the fine-tuned model: no sign that it looks at the pictures."


def _stage(path: Path) -> dict[str, Any]:
    """One row of the provenance table, and the whole file."""
    found = read_json(path)
    hardware = found.get("hardware", {})
    return {
        "name": "/".join(path.parts[-3:-1]),
        "seed": found.get("config", {}).get("seed"),
        "seconds": found.get("wall_seconds"),
        "memory": found.get("peak_memory_mb"),
        "gpu_memory": hardware.get("peak_gpu_memory_mb"),
        "hardware": ", ".join(hardware.get("gpus", []))
        or f"{hardware.get('cpus', '?')} CPUs, {hardware.get('machine', '')}",
        "packages": ", ".join(f"{name} {version}" for name, version in found.get("packages", {}).items()),
        "json": json.dumps(found, indent=2, ensure_ascii=False),
    }


def _data_report(path: Path, folder: Path) -> dict[str, Any]:
    """Name, link and content of a data report."""
    return {
        "name": path.parent.name,
        "link": Path(os.path.relpath(path, folder)).as_posix(),
        "json": gallery.shown_text(json.dumps(read_json(path), indent=2, ensure_ascii=False), _LONGEST_FILE),
    }


def _example(path: Path) -> dict[str, Any]:
    """What a training stage saw first: id, the parts of the text, numbers of tokens, the picture as a data URI."""
    picture = path.with_suffix(".png")
    encoded = base64.b64encode(picture.read_bytes()).decode("ascii") if picture.is_file() else None
    return {**read_json(path), "picture": encoded and f"data:image/png;base64,{encoded}"}
