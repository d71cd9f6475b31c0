"""The annotation formats. To add one, write a module with a :class:`Format`, its schema, and name both here."""

from __future__ import annotations

from typing import Any

from vlmflow.data.formats.draft import Format
from vlmflow.data.formats.llava import LLAVA
from vlmflow.data.formats.messages import MESSAGES
from vlmflow.data.formats.row import ROW
from vlmflow.data.formats.sharegpt import SHAREGPT
from vlmflow.data.formats.swift import SWIFT

FORMATS = {"llava": LLAVA, "internvl-meta": LLAVA, "sharegpt": SHAREGPT, "swift": SWIFT, "messages": MESSAGES,
           "csv": ROW, "tsv": ROW}  # fmt: skip


def detect(value: Any) -> Format:
    """The format of a record by its keys; LLaVA's when they say nothing."""
    if not isinstance(value, dict):
        return LLAVA
    if "messages" in value:
        return MESSAGES
    if "query" in value or "response" in value:
        return SWIFT
    if "question" in value and "answer" in value:
        return ROW
    turns = value.get("conversations")
    first = turns[0] if isinstance(turns, list) and turns else None
    if ("images" in value or "videos" in value) and not value.get("image"):
        return SHAREGPT
    if isinstance(first, dict) and "role" in first:
        return SHAREGPT
    return LLAVA
