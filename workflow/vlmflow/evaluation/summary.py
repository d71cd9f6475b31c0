"""The comparison in words: how numbers are written, and the Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

LABELS = {
    "before": "Base model",
    "pretrained": "After pretraining",
    "after": "Fine-tuned",
    "adapter": "Fine-tuned, adapter not merged",
    "merged": "Fine-tuned, merged",
    "blind": "Fine-tuned, pictures shuffled",
    "blank": "Fine-tuned, grey pictures",
    "majority": "Most frequent answer",
    "nearest_neighbour": "Nearest training picture",
}
"""What a reader calls the labels of a comparison's systems; others are shown as they are."""

METRICS = {
    "acc_at_0.5": "Acc@0.5",
    "anls": "ANLS",
    "bleu": "BLEU",
    "cer": "character error rate",
    "chrf": "chrF",
    "cider": "CIDEr",
    "iou": "IoU",
    "rouge_l": "ROUGE-L",
    "set_f1": "set F1",
    "vqa_accuracy": "VQA accuracy",
    "wer": "word error rate",
}
"""Names of metrics that are not their keys with spaces."""

OWN = "own"
"""The unit of a metric that is not of this project: its scale is not known, so it is shown as it is."""

_SHOWN = 10  # records that are named

Found = dict[str, Any]
"""A paired difference of comparison.json, or a whole evaluation, which has those of its headline."""


def score(value: float, found: Found) -> str:
    """A score times 100 with one decimal, in the unit of ``found``: a percentage, or no unit; or as it is."""
    if found["unit"] == OWN:
        return f"{value:.3f}"
    return f"{100 * value:.1f}{found['unit']}"


def score_between(interval: Sequence[float], found: Found) -> str:
    """An interval of scores, as :func:`score` writes them, with the sign at the end."""
    low, high = interval
    return f"{score(low, found).removesuffix(found['unit'])}\N{EN DASH}{score(high, found)}"


def points(value: float, unit: str = "") -> str:
    """A difference of scores times 100, with its sign: percentage points where the unit is percent; or as it is."""
    number = f"{value:+.3f}" if unit == OWN else f"{100 * value:+.1f}"
    return (number[1:] if float(number) == 0 else number).replace("-", "\N{MINUS SIGN}")


def points_between(interval: Sequence[float], unit: str = "") -> str:
    """An interval of differences, as :func:`points` writes them."""
    low, high = interval
    return f"{points(low, unit)} to {points(high, unit)}"


def p_value(value: float) -> str:
    """``p = 0.031``, or ``p < 0.0001``."""
    return "p < 0.0001" if value < 0.0001 else f"p = {value:.2g}" if value < 0.095 else f"p = {value:.2f}"


def count(n: int, noun: str) -> str:
    """``1 record``, ``2,000 records``."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def plain(name: str) -> str:
    """The key of a metric or label as words; a checkpoint's name (``model-my_base``) or a path stays as it is."""
    return LABELS.get(name) or METRICS.get(name) or (name if set("-./") & set(name) else name.replace("_", " "))


def gain(found: Found) -> float:
    """A difference, positive when it is for the better."""
    return -found["difference"] if found["better"] == "lower" else found["difference"]


def worst_first(categories: dict[str, Found]) -> list[tuple[str, Found]]:
    """Categories in the order of their gain."""
    return sorted(categories.items(), key=lambda item: gain(item[1]))


def verdict(found: Found) -> str:
    """One word for a paired difference: ``better``, ``worse``, or ``undecided`` when its interval includes 0."""
    low, high = found["ci95"]
    if low <= 0 <= high:
        return "undecided"
    return "better" if (low > 0) == (found["better"] == "higher") else "worse"


def change(found: Found) -> str:
    """``+3.1 points (95% CI +1.0 to +5.2)``."""
    return f"{_difference(found)} (95% CI {points_between(found['ci95'], found['unit'])})"


def sentence(found: Found) -> str:
    """The headline: before -> after, difference with interval, p-value, n."""
    direction = " (lower is better)" if found["better"] == "lower" else ""
    return (
        f"{found['evaluation']}: {plain(found['metric'])}{direction} "
        f"{score(found['before'], found)} -> {score(found['after'], found)} "
        f"({_difference(found)}, 95% CI {points_between(found['ci95'], found['unit'])}, {p_value(found['p_value'])}, "
        f"n = {count(found['n'], 'record')} on {count(found['pictures'], 'picture')})"
    )


def forgetting(found: Found) -> str:
    """What an evaluation of general ability says of forgetting."""
    state = verdict(found)
    if state == "worse":
        return f"Something was forgotten: general ability got worse by {abs(100 * found['difference']):.1f} points."
    if state == "better":
        return "Nothing was forgotten: general ability got better."
    low, high = found["ci95"]
    most = max(0.0, high if found["better"] == "lower" else -low)
    return f"No forgetting is shown: the interval includes 0. A loss of more than {100 * most:.1f} points is unlikely."


def markdown(comparison: dict[str, Any]) -> str:
    """The comparison as Markdown to paste: of each evaluation a sentence, what got worse, and tables."""
    parts = [
        f"# {_cell(comparison['experiment'].get('title') or comparison['experiment'].get('name') or 'Comparison')}"
    ]
    for found in comparison["evaluations"]:
        parts += [f"## {_cell(found['evaluation'])}", f"**{sentence(found)}**"]
        parts += [forgetting(found)] if found["general"] else []
        parts += [_got_worse(found), _systems(found)]
        parts += [_differences("Category", worst_first(found["categories"]))] if found["categories"] else []
        by_metric = [(plain(row["metric"]), row) for row in found["metrics"]]
        parts += [_differences("Metric", by_metric)] if len(by_metric) > 1 else []
        parts += [_foreign(row["metric"]) for row in found["metrics"] if row["unit"] == OWN]
        parts += [_parity(found["parity"])] if found["parity"] else []
    return "\n\n".join(parts) + "\n"


def _got_worse(found: Found) -> str:
    """Regressions before gains: how many records, which ones lost most, and in which categories."""
    named = ", ".join(f"`{_cell(name)}`" for name in found["regressions"][:_SHOWN])
    named += ", ..." if len(found["regressions"]) > _SHOWN else ""
    lines = [f"{found['losses']:,} got worse{f' ({named})' if named else ''}, {found['wins']:,} improved, "
             f"{found['ties']:,} unchanged. Test: {found['test']}."]  # fmt: skip
    worse = [f"{_cell(name)} {change(found['categories'][name])}" for name in found["worse_categories"]]
    lines += [f"Categories that got worse on average: {'; '.join(worse)}."] if worse else []
    return "\n\n".join(lines)


def _systems(found: Found) -> str:
    rows = [
        (plain(row["label"]), score(row["value"], found), score_between(row["ci95"], found), f"{row['n']:,}")
        for row in found["systems"]
    ]
    return _table(("", plain(found["metric"]), "95% CI", "n"), rows)


def _differences(heading: str, named: Sequence[tuple[str, Found]]) -> str:
    rows = [
        (name, score(row["before"], row), score(row["after"], row), points(row["difference"], row["unit"]),
         points_between(row["ci95"], row["unit"]), p_value(row["p_holm"]).removeprefix("p ").removeprefix("= "),
         f"{row['n']:,}")
        for name, row in named
    ]  # fmt: skip
    differences = "difference" if any(row["unit"] == OWN for _, row in named) else "points"
    return _table((heading, "before", "after", differences, "95% CI", "p (Holm)", "n"), rows)


def _difference(found: Found) -> str:
    return points(found["difference"], found["unit"]) + ("" if found["unit"] == OWN else " points")


def _foreign(metric: str) -> str:
    return f"`{_cell(metric)}` is not a metric of vlmflow: shown as it is; higher counts as better."


def _parity(parity: dict[str, Any]) -> str:
    return f"The same in both engines: {parity['equal']:,} of {count(parity['n'], 'answer')}."


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(_cell(text) for text in line) + " |" for line in lines)


def _cell(text: str) -> str:
    """Text that cannot break out of a table cell or a heading, nor become HTML."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")
