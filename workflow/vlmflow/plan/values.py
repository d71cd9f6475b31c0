"""Configuration values as parameters of jobs."""

from __future__ import annotations

import json
from typing import Any

TOKENS = ("max_length", "too_long", "max_dropped")
"""Keys of a training that the count of its tokens depends on, and nothing after it."""


def without(node: dict[str, Any], *keys: str) -> dict[str, Any]:
    """``node`` less some keys."""
    return {key: value for key, value in node.items() if key not in keys}


def number(value: float) -> float:
    """A whole number as ``int``, so that 1 and 1.0 are the same parameter."""
    return int(value) if value == int(value) else value


def as_json(value: Any) -> str:
    """JSON that is the same whatever the order of keys."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
