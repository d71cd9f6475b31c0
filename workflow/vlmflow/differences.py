"""How two JSON values differ, in words."""

from __future__ import annotations

import textwrap
from typing import Any

_LONGEST = 80


def differences(old: dict[str, Any], new: dict[str, Any], above: str = "") -> list[str]:
    """One entry per value that differs, as in ``options.seed was 0, is 1``; long values are cut."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        name, before, now = f"{above}{key}", old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            lines += differences(before, now, f"{name}.")
        elif key not in new:
            lines.append(f"{name} was {_short(before)}, is gone")
        elif key not in old:
            lines.append(f"{name} is {_short(now)}, was not there")
        elif before != now:
            lines.append(f"{name} was {_short(before)}, is {_short(now)}")
    return lines


def _short(value: Any) -> str:
    return textwrap.shorten(str(value), _LONGEST, placeholder="...")
