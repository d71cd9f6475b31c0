"""Configuration values as parameters of jobs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vlmflow.files import write_text

TOKENS = ("max_length", "too_long", "max_dropped")
"""Keys of a training that the count of its tokens depends on, and nothing after it."""


def without(node: dict[str, Any], *keys: str) -> dict[str, Any]:
    """``node`` less some keys."""
    return {key: value for key, value in node.items() if key not in keys}


def number(value: float) -> float:
    """A whole number as ``int``, so that 1 and 1.0 are the same parameter."""
    return int(value) if value == int(value) else value


def as_json(value: Any) -> str:
    """JSON that is the same whatever the order of keys, and for 1 and 1.0."""
    return json.dumps(_same(value), sort_keys=True, ensure_ascii=False)


def _same(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _same(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_same(item) for item in value]
    return number(value) if isinstance(value, float) else value


def in_file(name: str, text: str) -> str:
    """The path of a file with ``text``, written now: for a job that is told more than a command line takes."""
    file = Path(".snakemake") / "told" / f"{name}.json"
    write_text(file, text)
    return str(file)
