"""The canonical record: one line of results/data/<dataset>/<split>.jsonl (workflow/schemas/record.schema.yaml)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmflow.errors import UserError


@dataclass(frozen=True)
class Image:
    """A picture: path, size in pixels as seen upright, SHA-256 of the file."""

    path: str
    width: int
    height: int
    sha256: str


@dataclass(frozen=True)
class Turn:
    """One utterance of ``system``, ``user`` or ``assistant``; ``<image>`` marks the place of a picture."""

    role: str
    text: str


@dataclass(frozen=True)
class Record:
    """A conversation about pictures, in the order of their placeholders."""

    id: str
    images: tuple[Image, ...]
    turns: tuple[Turn, ...]
    category: str | None = None


def read_records(path: Path) -> list[Record]:
    """All records of a file; a missing file or a broken line is a :class:`UserError` that names it."""
    records: list[Record] = []
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                records.append(_from_json(json.loads(line)))
    except FileNotFoundError:
        raise UserError("no such file", "run the stage that makes it (snakemake does)", file=path) from None
    except (ValueError, KeyError, TypeError) as error:
        advice = "delete the file and run snakemake again"
        raise UserError(f"line {len(records) + 1} is no record: {error}", advice, file=path) from error
    return records


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write records, one JSON object a line; a reader sees the old or the new file, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with part.open("w", encoding="utf-8", newline="\n") as stream:
        for record in records:
            stream.write(json.dumps(_to_json(record), ensure_ascii=False) + "\n")
    part.replace(path)


def _from_json(value: dict[str, Any]) -> Record:
    images = tuple(Image(**image) for image in value["images"])
    return Record(value["id"], images, tuple(Turn(**turn) for turn in value["turns"]), value.get("category"))


def _to_json(record: Record) -> dict[str, Any]:
    value: dict[str, Any] = {
        "id": record.id,
        "images": [vars(image) for image in record.images],
        "turns": [vars(turn) for turn in record.turns],
    }
    return value if record.category is None else {**value, "category": record.category}
