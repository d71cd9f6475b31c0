"""The comparison in words: how numbers are written, and the Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

LABELS = {
    "before": "Base model",
    "pretrained": "After pretraining",
    "after": "Fine-tuned",
    "blind": "Fine-tuned, pictures shuffled",
    "majority": "Most frequent answer",
    "nearest_neighbour": "Nearest training picture",
}
"""What a reader calls the labels of a comparison's systems; others are shown as they are."""


def percent(value: float) -> str:
    """A score of 0 to 1 as a percentage with one decimal."""
    return f"{100 * value:.1f}%"


def points(value: float) -> str:
    """A difference of scores in signed percentage points."""
    number = f"{100 * value:+.1f}"
    return ("0.0" if float(number) == 0 else number).replace("-", "\N{MINUS SIGN}")


def between(interval: Sequence[float]) -> str:
    """An interval of scores, in percent."""
    low, high = interval
    return f"{100 * low:.1f}\N{EN DASH}{100 * high:.1f}%"


def points_between(interval: Sequence[float]) -> str:
    """An interval of differences, in points."""
    low, high = interval
    return f"{points(low)} to {points(high)}"


def p_value(value: float) -> str:
    """``p = 0.031``, or ``p < 0.0001``."""
    return "p < 0.0001" if value < 0.0001 else f"p = {value:.2g}" if value < 0.095 else f"p = {value:.2f}"


def count(n: int, noun: str) -> str:
    """``1 record``, ``2,000 records``."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def plain(name: str) -> str:
    """The key of a metric or label as words."""
    return LABELS.get(name, name.replace("_", " "))


def verdict(found: dict[str, Any]) -> str:
    """One word for a paired difference: ``better``, ``worse``, or ``undecided`` when its interval includes 0."""
    low, high = found["ci95"]
    return "better" if low > 0 else "worse" if high < 0 else "undecided"


def sentence(found: dict[str, Any]) -> str:
    """The headline: before -> after, difference with interval, p-value, n."""
    return (
        f"{found['evaluation']}: {plain(found['metric'])} {percent(found['before'])} -> {percent(found['after'])} "
        f"({points(found['difference'])} points, 95% CI {points_between(found['ci95'])}, {p_value(found['p_value'])}, "
        f"n = {count(found['n'], 'record')} on {count(found['pictures'], 'picture')})"
    )


def markdown(comparison: dict[str, Any]) -> str:
    """The comparison as Markdown to paste: a sentence and two tables for each evaluation."""
    parts = [
        f"# {_cell(comparison['experiment'].get('title') or comparison['experiment'].get('name') or 'Comparison')}"
    ]
    for found in comparison["evaluations"]:
        parts += [f"## {found['evaluation']}", f"**{sentence(found)}**", _systems(found)]
        parts += [_categories(found)] if found["categories"] else []
        counts = f"{found['wins']} improved, {found['losses']} got worse, {found['ties']} unchanged"
        parts += [f"{counts}. Test: {found['test']}."]
    return "\n\n".join(parts) + "\n"


def _systems(found: dict[str, Any]) -> str:
    rows = [
        (plain(row["label"]), percent(row["value"]), between(row["ci95"]), f"{row['n']:,}") for row in found["systems"]
    ]
    return _table(("", plain(found["metric"]), "95% CI", "n"), rows)


def _categories(found: dict[str, Any]) -> str:
    rows = [
        (name, percent(row["before"]), percent(row["after"]), points(row["difference"]), points_between(row["ci95"]),
         f"{row['n']:,}")
        for name, row in found["categories"].items()
    ]  # fmt: skip
    return _table(("Category", "before", "after", "points", "95% CI", "n"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(_cell(text) for text in line) + " |" for line in lines)


def _cell(text: str) -> str:
    """Text that cannot break out of a table cell or a heading, nor become HTML."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")
