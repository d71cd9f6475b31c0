"""Why snakemake runs a job again, in words: which configuration values, modules and files changed."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Iterator
from typing import Any

from vlmflow.differences import differences
from vlmflow.plan.own_files import OwnFiles

_MOST = 5


def explain(before: Iterable[str], now: Iterable[str], own_files: OwnFiles) -> str:
    """What differs between parameters of a job (as snakemake keeps them: their ``repr``) then and now."""
    old, new = ([_value(text) for text in sorted(texts)] for texts in (before, now))
    pairs = [(one, other) for one in old for other in new if _alike(one, other)]
    lost = [value for value in old if all(value is not one for one, _ in pairs)]
    found = [value for value in new if all(value is not other for _, other in pairs)]
    if len(lost) == len(found) == 1 and _is_options(lost[0]) and _is_options(found[0]):
        pairs.append((lost.pop(), found.pop()))
    lines = [line for one, other in pairs for line in _lines(one, other, own_files)]
    if any(isinstance(value, dict) for value in (*lost, *found)):
        lines.append("another version of vlmflow ran it")
    elif lost or found:
        lines.append(f"{_listed(lost)} before, {_listed(found)} now")
    return "; ".join(dict.fromkeys(lines))


def _value(text: str) -> Any:
    """A parameter: what its JSON holds, or itself."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    if isinstance(value, str) and value.startswith("{"):
        return json.loads(value)
    return value


def _alike(one: Any, other: Any) -> bool:
    return isinstance(one, dict) and isinstance(other, dict) and bool(one.keys() & other.keys())


def _is_options(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() not in ({"code"}, {"files"})


def _lines(old: dict[str, Any], new: dict[str, Any], own_files: OwnFiles) -> list[str]:
    if new.keys() == {"code"}:
        return _some(_edits(old["code"], new["code"]))
    if new.keys() == {"files"}:
        paths = [path for path in new["files"] if new["files"][path] != old["files"].get(path)]
        return [
            f"files changed in {path}: {', '.join(_some(own_files.changed(path))) or 'which is not known'}"
            for path in paths
        ]
    return _some(differences(old, new))


def _edits(old: dict[str, str], new: dict[str, str]) -> Iterator[str]:
    for file in sorted(old.keys() | new.keys()):
        if old.get(file) != new.get(file):
            what = "was edited" if file in old and file in new else "is used now" if file in new else "is not used now"
            yield f"workflow/{file} {what}"


def _some(lines: Iterable[str]) -> list[str]:
    found = list(lines)
    return found[:_MOST] + [f"and {len(found) - _MOST} more"] * (len(found) > _MOST)


def _listed(values: list[Any]) -> str:
    return ", ".join(str(value) or "nothing" for value in values) or "nothing"
