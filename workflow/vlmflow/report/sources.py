"""Where an experiment comes from: provenance, data reports, a training example, and the files behind the page."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vlmflow.evaluation.compare import EvaluationRuns
from vlmflow.files import read_json
from vlmflow.report.gallery import link, shown_text

_LONGEST_FILE = 100_000  # characters of a file shown in full


def stage(path: Path) -> dict[str, Any]:
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
        "version": found.get("vlmflow"),
        "json": json.dumps(found, indent=2, ensure_ascii=False),
    }


def runs(evaluations: Sequence[EvaluationRuns], folder: Path) -> list[dict[str, Any]]:
    """Each run of each evaluation: links to its files, how it was asked, and the whole scores.json."""
    return [
        {
            "evaluation": evaluation.name,
            "label": label,
            "checkpoint": directory.name,
            "predictions": link(directory / "predictions.jsonl", folder),
            "scores": link(directory / "scores.json", folder),
            "json": json.dumps(read_json(directory / "scores.json"), indent=2, ensure_ascii=False),
        }
        for evaluation in evaluations
        for label, directory in evaluation.directories().items()
    ]


def tables(comparison: Path, folder: Path) -> list[dict[str, str]]:
    """Name and link of the comparison's files."""
    files = (comparison.with_suffix(suffix) for suffix in (".csv", ".json", ".md"))
    return [{"name": path.name, "link": link(path, folder)} for path in files if path.is_file()]


def data_report(path: Path, folder: Path) -> dict[str, Any]:
    """Name, links and content of a data report."""
    content = json.dumps(read_json(path), indent=2, ensure_ascii=False)
    return {"name": path.parent.name, "links": list(_beside(path, folder)), "json": shown_text(content, _LONGEST_FILE)}


def _beside(path: Path, folder: Path) -> Iterator[dict[str, str]]:
    for name in ("report.md", "report.json", "boxes.jpg"):
        if path.with_name(name).is_file():
            yield {"name": name, "link": link(path.with_name(name), folder)}


def example(path: Path, folder: Path) -> dict[str, Any]:
    """What a training stage saw first: id, the parts of the text, numbers of tokens, the picture as a data URI."""
    picture = path.with_suffix(".png")
    encoded = base64.b64encode(picture.read_bytes()).decode("ascii") if picture.is_file() else None
    return {**read_json(path), "picture": encoded and f"data:image/png;base64,{encoded}", "link": link(path, folder)}
