"""The report of the data stage: every rejected or repaired record, with what to do about it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from vlmflow.errors import Problem

_EXAMPLES = 20  # problems of a kind that the readable report shows
_KEYS = 50  # ignored keys that a report names


def shown(text: object, width: int = 80) -> str:
    """``text`` as one printable line of at most ``width`` characters, whatever a hostile input holds."""
    line = str(text)
    line = line if line.isprintable() else repr(line)[1:-1]
    return line if len(line) <= width else line[: width - 3] + "..."


def _kind(reason: str) -> str:
    """What problems of the same sort have in common: the reason up to its colon."""
    return reason.split(":")[0]


def summarize(
    read: int,
    splits: dict[str, int],
    problems: Sequence[Problem],
    repaired: Counter[str],
    placed: Counter[str],
    ignored: Counter[str],
    sizes: Iterable[tuple[int, int]],
) -> dict[str, Any]:
    """The content of report.json; ``sizes`` are (width, height) in pixels of the pictures in use."""
    accepted = sum(splits.values())
    sizes = list(sizes)
    widths, heights = [width for width, _ in sizes], [height for _, height in sizes]
    return {
        "records": {"read": read, "accepted": accepted, "dropped": read - accepted},
        "splits": splits,
        "images": {
            "count": len(sizes),
            "width": {"min": min(widths, default=None), "max": max(widths, default=None)},
            "height": {"min": min(heights, default=None), "max": max(heights, default=None)},
        },
        "dropped": dict(Counter(_kinds(problems)).most_common()),
        "repaired": dict(repaired),
        "placed": dict(placed),
        "ignored_keys": dict(ignored.most_common(_KEYS)),
        "problems": [_located(problem) for problem in problems],
    }


def _kinds(problems: Sequence[Problem]) -> list[str]:
    """The kind of each problem, once for a record."""
    found = dict.fromkeys((_kind(problem.reason), problem.file, problem.record) for problem in problems)
    return [name for name, *_ in found]


def _located(problem: Problem) -> dict[str, Any]:
    value = dataclasses.asdict(problem)
    return {**value, "file": None if problem.file is None else str(problem.file)}


def render(report: dict[str, Any]) -> str:
    """report.md: a table of counts, then the problems by kind, the first of each with what to do."""
    records, images = report["records"], report["images"]
    rows: list[tuple[str, object]] = [(f"records {name}", count) for name, count in records.items()]
    rows += [(f"split {name}", count) for name, count in report["splits"].items()]
    rows += [("pictures", images["count"])]
    rows += [(f"{side} in pixels", _range(images[side])) for side in ("width", "height") if images["count"]]
    rows += [(f"{title}: {name}", n) for title in ("repaired", "placed") for name, n in report[title].items()]
    rows += [(f"ignored key: {name}", count) for name, count in report["ignored_keys"].items()]
    table = [f"| {_escape(name)} | {count} |" for name, count in rows]
    lines = ["# Data report", "", "| what | count |", "| --- | ---: |", *table, ""]
    for name, count in report["dropped"].items():
        found = [problem for problem in report["problems"] if _kind(problem["reason"]) == name]
        lines += [f"## {_escape(name)} ({count} records)", "", *map(_item, found[:_EXAMPLES])]
        lines += [f"- ... and {len(found) - _EXAMPLES} more in report.json", ""] if len(found) > _EXAMPLES else [""]
    return "\n".join(lines)


def _range(span: dict[str, int]) -> str:
    return str(span["min"]) if span["min"] == span["max"] else f"{span['min']} to {span['max']}"


def _item(problem: dict[str, Any]) -> str:
    where = ", ".join(str(problem[name]) for name in ("file", "record", "field") if problem[name] is not None)
    advice = f" *{_escape(problem['advice'])}*" if problem["advice"] else ""
    return f"- {_escape(where)}: {_escape(problem['reason'])}.{advice}"


def _escape(text: str) -> str:
    """Markdown takes ``<image>`` for a tag and ``|`` for the edge of a cell."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("*", "\\*")
