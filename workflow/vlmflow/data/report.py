"""The report of the data stage: every rejected or repaired record, with what to do about it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from vlmflow.errors import Problem
from vlmflow.files import write_json, write_text

_EXAMPLES = 20  # problems of a kind that the readable report shows
_KEYS = 50  # ignored keys that a report names
_ALIKE = 20  # pairs of similar pictures that a report names


class CountsLike(Protocol):
    """What the reader of annotations counts (:class:`vlmflow.data.annotations.Counts`)."""

    read: int
    repaired: Counter[str]
    placed: Counter[str]
    ignored: Counter[str]


def shown(text: object, width: int = 80) -> str:
    """``text`` as one printable line of at most ``width`` characters, whatever a hostile input holds."""
    line = str(text)[: 10 * width]
    line = line if line.isprintable() else repr(line)[1:-1]
    return line if len(line) <= width else line[: width - 3] + "..."


def kind(reason: str) -> str:
    """What problems of the same sort have in common: the reason up to its colon."""
    return reason.split(":")[0]


def summarize(
    counts: CountsLike,
    splits: Mapping[str, int],
    problems: Sequence[Problem],
    media: Mapping[str, Any],
    alike: Sequence[tuple[str, str, int]],
) -> dict[str, Any]:
    """The content of report.json.

    ``splits`` are the records of each; ``media`` counts pictures, videos and records with boxes; ``alike`` names
    held-out pictures that look like one for training.
    """
    accepted = sum(splits.values())
    return {
        "records": {"read": counts.read, "accepted": accepted, "dropped": counts.read - accepted},
        "splits": dict(splits),
        **media,
        "dropped": dict(Counter(_kinds(problems)).most_common()),
        "repaired": dict(counts.repaired),
        "placed": dict(counts.placed),
        "ignored_keys": dict(counts.ignored.most_common(_KEYS)),
        "similar_across_splits": {
            "count": len(alike),
            "examples": [
                {"held_out": held_out, "training": training, "distance": distance}
                for held_out, training, distance in alike[:_ALIKE]
            ],
        },
        "problems": [_located(problem) for problem in problems],
    }


def _kinds(problems: Sequence[Problem]) -> list[str]:
    """The kind of each problem, once for a record."""
    found = dict.fromkeys((kind(problem.reason), problem.file, problem.record) for problem in problems)
    return [name for name, *_ in found]


def _located(problem: Problem) -> dict[str, Any]:
    value = dataclasses.asdict(problem)
    return {**value, "file": None if problem.file is None else str(problem.file)}


def write_report(directory: Path, report: Mapping[str, Any]) -> None:
    """Write report.json, for programs, and report.md, for people."""
    write_json(directory / "report.json", report)
    write_text(directory / "report.md", render(report, boxes=(directory / "boxes.jpg").exists()))


def write_problems(directory: Path, report: Mapping[str, Any]) -> None:
    """Write problems.json and problems.md: what is wrong with a data set that cannot be used.

    Snakemake deletes the outputs of a failed job, so these have names of their own; the next good run removes them.
    """
    write_json(directory / "problems.json", report)
    write_text(directory / "problems.md", render(report, boxes=False))


def render(report: Mapping[str, Any], boxes: bool) -> str:
    """report.md: a table of counts, then the problems by kind, the first of each with what to do."""
    records, images, alike = report["records"], report["images"], report["similar_across_splits"]
    rows: list[tuple[str, object]] = [(f"records {name}", count) for name, count in records.items()]
    rows += [(f"split {name}", count) for name, count in report["splits"].items()]
    rows += [("pictures", images["count"])]
    rows += [(f"{side} in pixels", _range(images[side])) for side in ("width", "height") if images["count"]]
    rows += [(name, report[name]) for name in ("videos", "records with boxes") if report[name]]
    rows += [(f"{title}: {name}", n) for title in ("repaired", "placed") for name, n in report[title].items()]
    rows += [(f"ignored key: {name}", count) for name, count in report["ignored_keys"].items()]
    rows += [("held-out pictures that look like one for training", alike["count"])] if alike["count"] else []
    table = [f"| {escape(name)} | {count} |" for name, count in rows]
    lines = ["# Data report", "", "| what | count |", "| --- | ---: |", *table, ""]
    lines += ["![some of the boxes, drawn](boxes.jpg)", ""] if boxes else []
    for name, count in report["dropped"].items():
        found = [problem for problem in report["problems"] if kind(problem["reason"]) == name]
        lines += [f"## {escape(name)} ({count} records)", "", *map(_item, found[:_EXAMPLES])]
        lines += [f"- ... and {len(found) - _EXAMPLES} more in report.json", ""] if len(found) > _EXAMPLES else [""]
    if alike["count"]:
        lines += ["## Held-out pictures that look like one for training", ""]
        lines += [f"- {escape(pair['held_out'])} like {escape(pair['training'])}" for pair in alike["examples"]]
        lines += ["", "Look at them: if they show the same thing, the test is easier than it seems.", ""]
    return "\n".join(lines)


def _range(span: dict[str, int]) -> str:
    return str(span["min"]) if span["min"] == span["max"] else f"{span['min']} to {span['max']}"


def _item(problem: dict[str, Any]) -> str:
    where = ", ".join(str(problem[name]) for name in ("file", "record", "field") if problem[name] is not None)
    advice = f" *{escape(problem['advice'])}*" if problem["advice"] else ""
    return f"- {escape(where)}: {escape(problem['reason'])}.{advice}"


def escape(text: str) -> str:
    """Markdown takes ``<image>`` for a tag and ``|`` for the edge of a cell."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("*", "\\*")
