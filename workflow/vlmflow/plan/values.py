"""Configuration values as parameters of jobs, and the state of files that belong to the user."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
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


def state_of_files(path: str) -> str:
    """Digest of names, sizes and modification times of a file, or of all below a folder."""
    top = Path(path).expanduser()
    below = sorted(f"{folder}/{file}" for folder, _, files in os.walk(top) for file in files)
    digest = hashlib.sha256()
    for file in below or [str(top.resolve())] * top.exists():
        linked = Path(file)  # the hub's own cache consists of links
        state = linked.stat() if linked.exists() else linked.lstat()  # a dangling link is a file too
        digest.update(f"{file}\0{state.st_size}\0{state.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]
