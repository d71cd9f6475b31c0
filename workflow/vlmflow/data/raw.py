"""One record as it stands in an annotation file."""

from __future__ import annotations

from typing import Any, NamedTuple

Finding = tuple[str, str, str]
"""Reason (its kind stands before the colon), advice, field of the record."""


class Raw(NamedTuple):
    """One record as it stands in a file; ``value`` is None when it cannot be read, ``broken`` tells why."""

    number: int
    position: str
    value: Any
    broken: Finding | None = None
