"""What every annotation format is turned into: a record whose pictures and videos are names, not yet looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from vlmflow.data.raw import Finding
from vlmflow.data.records import Box, Turn

Value = dict[str, Any]

IMAGE, VIDEO = "<image>", "<video>"
MEDIA = ("image", "images", "img", "image_path", "image_file", "image_url", "picture", "video", "videos")
"""Keys that one format or another uses for pictures; where they are not read, training would go without."""
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


class Draft(msgspec.Struct, omit_defaults=True):
    """A conversation of an annotation file; ``refs`` and ``boxes`` stand for its ``<ref-object>`` and ``<bbox>``."""

    id: str | None
    turns: list[Turn]
    images: list[str] = []
    videos: list[str] = []
    refs: list[str] = []
    boxes: list[Box] = []
    category: str | None = None
    answers: list[str] = []
    repeat: float = 1.0
    repaired: list[str] = []
    file: int = 0
    number: int = 0
    position: str = ""


class UnusableError(Exception):
    """The shape of a record is right, but its content says two things at once; carries one finding."""

    def __init__(self, reason: str, advice: str, field: str) -> None:
        super().__init__(reason)
        self.finding: Finding = (reason, advice, field)


class Format(NamedTuple):
    """An annotation format: its schema (workflow/schemas/NAME.schema.yaml), reader, and names of fields in messages."""

    schema: str
    draft: Callable[[Value], Draft]
    turn_field: Callable[[Value, int], str]
    image_field: str


def identifier(value: Value) -> str | None:
    """The ``id`` of a record; numbers become text."""
    name = value.get("id")
    return None if name is None else str(name)


def answers(value: Value) -> list[str]:
    """The further right answers of a record."""
    return value.get("answers") or []


def names(value: Any) -> list[str]:
    """A name or a list of names as a list."""
    return [value] if isinstance(value, str) else list(value or ())
