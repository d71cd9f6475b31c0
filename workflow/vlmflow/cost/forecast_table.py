"""The table of `snakemake plan`: every training stage with its memory, time and GPU-hours."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlmflow.files import read_json, write_json

_COLUMNS = ("stage", "name", "GPU", "GPUs", "samples", "tokens", "steps", "micro-batch", "recomputed", "GiB per GPU",
            "time", "GPU-hours", "fits")  # fmt: skip
_PARTS = ("weights", "adapters", "gradients", "optimizer", "activations", "logits", "vision", "reserve", "total")


def print_plan(stages: list[Path], output: Path) -> None:
    """Print the table of the forecasts in ``stages`` and write them, as one list, to ``output``."""
    rows = [read_json(path) for path in stages]
    write_json(output, {"stages": rows, "gpu_hours": _gpu_hours(rows)})
    sys.stdout.write(render(rows))


def render(rows: Sequence[dict[str, Any]]) -> str:
    """The stages, the sum of their GPU-hours, what their memory consists of, and notes."""
    total = f"{_gpu_hours(rows):.1f} GPU-hours" + ("" if all(row["fits"] for row in rows) else ", of what fits")
    parts = [(row["stage"], row["name"], *(f"{row['memory_gib'][part]:.1f}" for part in _PARTS)) for row in rows]
    notes = [f"{row['stage']} {row['name']}: {note}" for row in rows for note in row["notes"]]
    blocks = [
        _aligned([_COLUMNS, *map(_cells, rows)], words=3),
        [total],
        _aligned([("GiB", "per GPU", *_PARTS), *parts], words=2),
        notes,
    ]
    return "\n".join("\n".join([*block, ""]) for block in blocks if block)


def _aligned(table: Sequence[Sequence[str]], words: int) -> list[str]:
    """Lines of equal columns; the first ``words`` are words, the others numbers."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    cells = [
        [cell.ljust(width) if place < words else cell.rjust(width)
         for place, (cell, width) in enumerate(zip(line, widths, strict=True))]
        for line in table
    ]  # fmt: skip
    return ["  ".join(line).rstrip() for line in cells]


def _gpu_hours(rows: Sequence[dict[str, Any]]) -> float:
    return round(sum(row["gpu_hours"] or 0 for row in rows), 3)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["stage"],
        row["name"],
        row["gpu"] + "?" * row["gpu_assumed"],
        str(row["gpus"]),
        f"{row['samples']:,}",
        f"{row['tokens']:,}",
        f"{row['steps']:,}",
        str(row["micro_batch_size"]),
        f"{row['checkpointed_layers']}/{row['layers']}",
        f"{row['memory_gib']['total']:.1f}/{row['memory_limit_gib']:.1f}",
        _duration(row["seconds"]),
        "-" if row["gpu_hours"] is None else f"{row['gpu_hours']:.1f}",
        "yes" if row["fits"] else "NO",
    )


def _duration(seconds: float | None) -> str:
    """As 3 d 04 h, 5 h 06 min, 7 min or 8 s."""
    if seconds is None:
        return "-"
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02} min" if hours < 48 else f"{hours // 24} d {hours % 24:02} h"
