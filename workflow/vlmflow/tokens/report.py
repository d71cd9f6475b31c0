"""The report of the token budget: how long the records are, and what was done to those that were too long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlmflow.data.records import RecordFile
from vlmflow.data.report import escape, shown
from vlmflow.files import write_json, write_text

_LONGEST = 10
_EXAMPLES = 20  # records that the readable report names; report.json has all


def summarize(
    name: str, rows: np.ndarray, records: RecordFile, picture_tokens: int, changed: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """One data set's part of report.json; ``rows`` and ``records`` the kept, ``changed`` the shortened and dropped."""
    tokens = rows["tokens"]
    done = [change["what"] for change in changed]
    total = int(tokens.sum())
    return {
        "name": name,
        "records": {
            "read": len(rows) + done.count("dropped"),
            "kept": len(rows),
            **{what: done.count(what) for what in ("dropped", "fewer turns", "fewer tiles")},
        },
        "tokens": {**_distribution(tokens), "total": total},
        "supervised_share": _share(int(rows["supervised"].sum()), total),
        "picture_share": _share(picture_tokens, total),
        "longest": [
            {"id": records[int(index)].id, "tokens": int(tokens[index])}
            for index in np.argsort(-tokens, kind="stable")[:_LONGEST]
        ],
        "changed": list(changed),
    }


def write_report(directory: Path, report: Mapping[str, Any]) -> None:
    """Write report.json, for programs, and report.md, for people."""
    write_json(directory / "report.json", report)
    write_text(directory / "report.md", render(report))


def render(report: Mapping[str, Any]) -> str:
    """report.md: a table with a column per data set, then the longest and the changed records of each."""
    datasets = report["datasets"]
    names = [escape(dataset["name"]) for dataset in datasets]
    rows: list[tuple[str, list[object]]] = [
        (f"records {what}", [dataset["records"][what] for dataset in datasets]) for what in datasets[0]["records"]
    ]
    rows += [(f"tokens, {what}", [dataset["tokens"][what] for dataset in datasets]) for what in datasets[0]["tokens"]]
    for what in ("supervised", "picture"):
        rows.append((f"{what} tokens", [f"{dataset[f'{what}_share']:.1%}" for dataset in datasets]))
    lines = [
        "# Token budget", "",
        f"`max_length` is {report['max_length']} tokens, pictures included; `too_long` is {report['too_long']}.", "",
        f"| what | {' | '.join(names)} |", f"| --- |{' ---: |' * len(names)}",
        *(f"| {title} | {' | '.join(map(str, values))} |" for title, values in rows), "",
    ]  # fmt: skip
    for name, dataset in zip(names, datasets, strict=True):
        longest = ", ".join(f"{escape(shown(record['id']))} ({record['tokens']})" for record in dataset["longest"])
        lines += [f"## {name}", "", f"Longest: {longest or 'none'}.", ""]
        lines += [_change(change) for change in dataset["changed"][:_EXAMPLES]]
        more = len(dataset["changed"]) - _EXAMPLES
        lines += [f"- ... and {more} more in report.json", ""] if more > 0 else [""]
    return "\n".join(lines)


def _change(change: Mapping[str, Any]) -> str:
    after = f", now {change['tokens_after']}" if change["tokens_after"] is not None else ""
    return f"- {escape(shown(change['id']))}: {change['what']}: {change['tokens']} tokens{after}"


def _distribution(tokens: np.ndarray) -> dict[str, int]:
    if not len(tokens):
        return dict.fromkeys(("min", "median", "p95", "max"), 0)
    median, p95 = np.percentile(tokens, [50, 95], method="lower")
    return {"min": int(tokens.min()), "median": int(median), "p95": int(p95), "max": int(tokens.max())}


def _share(part: int, whole: int) -> float:
    return round(part / whole, 6) if whole else 0.0
