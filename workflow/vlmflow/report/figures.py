"""Figures of the report as inline SVG. Colours come from the page's style sheet, by class."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

Point = tuple[float, float]

_WIDTH, _LEFT, _RIGHT, _TOP = 480, 46, 474, 8
_LOSS_BOTTOM, _RATE_TOP, _RATE_BOTTOM, _HEIGHT = 168, 186, 214, 240
_MOST_POINTS = 400  # of one curve; more cannot be told apart at this width


@dataclass(frozen=True)
class Axis:
    """A linear scale from data to picture coordinates."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return round(self.start + share * (self.end - self.start), 2)


def interval_bar(value: float, interval: Sequence[float], kind: str) -> Markup:
    """A dot at a score of 0 to 1 on its 95% interval; ``kind`` is a style sheet class."""
    return _strip(_grid(), _whisker(interval, kind), _dot(value, kind))


def before_and_after(before: dict[str, Any], after: dict[str, Any], marks: Sequence[float] = ()) -> Markup:
    """Before and after (``value``, ``ci95``) of one category one above the other; ``marks`` are baselines to pass."""
    ticks = Markup("").join(
        Markup('<line class="mark" x1="{0}%" x2="{0}%" y1="3" y2="21"/>').format(_share(mark)) for mark in marks
    )
    lanes = Markup("").join(
        _whisker(end["ci95"], kind, lane) + _dot(end["value"], kind, lane)
        for end, kind, lane in ((before, "before", 7), (after, "after", 17))
    )
    return _strip(_grid(), ticks, lanes)


def scale() -> Markup:
    """The labels of the scale that :func:`interval_bar` and :func:`before_and_after` share."""
    labels = ((0, "start"), (25, "middle"), (50, "middle"), (75, "middle"), (100, "end"))
    texts = (Markup('<text x="{0}%" y="12" text-anchor="{1}">{0}</text>').format(*label) for label in labels)
    return Markup('<svg class="scale" width="100%" height="16" aria-hidden="true">{}</svg>').format(
        Markup("").join(texts)
    )


def loss_figure(name: str, log: list[dict[str, Any]]) -> dict[str, Any]:
    """Title, caption and SVG of a training log: loss against step, learning rate below.

    A step that was logged twice (training resumed) counts once, with its last values; a loss that is not finite breaks
    no axis but is counted in the caption.
    """
    rows = [row for _, row in sorted({row["step"]: row for row in log}.items())]
    losses = [(row["step"], row["loss"]) for row in rows if _finite(row.get("loss"))]
    rates = [(row["step"], row["lr"]) for row in rows if _finite(row.get("lr"))]
    lost = sum(1 for row in rows if "loss" in row and not _finite(row["loss"]))
    if not losses:
        return {"title": name, "caption": "No step was logged.", "svg": None}
    svg = _curves(losses, rates)
    return {"title": name, "caption": _caption(rows, losses, rates, lost), "svg": svg}


def smooth(points: list[Point], window: int) -> list[Point]:
    """Centred moving average over at most ``window`` (odd) points, fewer at the ends, so that the curve has no lag."""
    sums = [0.0, *itertools.accumulate(y for _, y in points)]
    result = []
    for i, (x, _) in enumerate(points):
        half = min(window // 2, i, len(points) - 1 - i)
        result.append((x, (sums[i + half + 1] - sums[i - half]) / (2 * half + 1)))
    return result


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """At most ``most`` round numbers (1, 2 or 5 times a power of ten apart) between two bounds."""
    if not high > low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    steps = (factor * power for factor in (1, 2, 5, 10, 20))
    step = next(step for step in steps if math.floor(high / step) - math.ceil(low / step) < most)
    return [round(i * step, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _curves(losses: list[Point], rates: list[Point]) -> Markup:
    x = Axis(losses[0][0], losses[-1][0], _LEFT, _RIGHT)
    values = [value for _, value in losses]
    low, high = min(values), max(values)
    margin = (high - low) * 0.05 or 0.05 * abs(high) or 1.0
    y = Axis(max(0.0, low - margin) if low >= 0 else low - margin, high + margin, _LOSS_BOTTOM, _TOP)
    rate = Axis(0.0, max((value for _, value in rates), default=0.0) or 1.0, _RATE_BOTTOM, _RATE_TOP)
    parts = [_gridline(y(tick), f"{tick:g}") for tick in ticks(y.low, y.high)]
    parts += [
        Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(x(tick), _HEIGHT - 10, f"{tick:,g}")
        for tick in ticks(x.low, x.high, 6)
    ]
    parts.append(_line(losses, x, y, "raw" if len(losses) >= 20 else "smooth"))
    if len(losses) >= 20:
        parts.append(_line(smooth(losses, max(5, len(losses) // 20) | 1), x, y, "smooth"))
    if rates:
        parts += [_gridline(_RATE_BOTTOM, "0"), _gridline(_RATE_TOP, f"{rate.high:.2g}"), _line(rates, x, rate, "rate")]
    return Markup(
        '<svg class="curves" viewBox="0 0 {} {}" role="img" aria-label="Loss and learning rate by step">{}</svg>'
    ).format(_WIDTH, _HEIGHT, Markup("").join(parts))


def _line(points: list[Point], x: Axis, y: Axis, kind: str) -> Markup:
    stride = math.ceil(len(points) / _MOST_POINTS)
    thinned = points[::stride] + ([points[-1]] if (len(points) - 1) % stride else [])
    path = " ".join(f"{x(a):g},{y(b):g}" for a, b in thinned)
    return Markup('<polyline class="{}" points="{}"/>').format(kind, path)


def _gridline(height: float, label: str) -> Markup:
    return Markup(
        '<line class="grid" x1="{0}" x2="{1}" y1="{2}" y2="{2}"/><text x="{3}" y="{4}" text-anchor="end">{5}</text>'
    ).format(_LEFT, _RIGHT, height, _LEFT - 6, height + 4, label)


def _caption(rows: list[dict[str, Any]], losses: list[Point], rates: list[Point], lost: int) -> str:
    last = losses[-max(1, len(losses) // 20) :]
    parts = [f"{rows[-1]['step']:,} steps", f"loss {_mean(losses[:1]):.3g} at first, {_mean(last):.3g} at the end"]
    parts += [f"peak learning rate {max(value for _, value in rates):.2g}"] if rates else []
    speeds = [row["samples_per_s"] for row in rows if _finite(row.get("samples_per_s"))]
    parts += [f"{speeds[-1]:.3g} samples/s"] if speeds else []
    parts += [f"not finite and not drawn: {lost}"] if lost else []
    return "; ".join(parts) + "."


def _mean(points: list[Point]) -> float:
    return math.fsum(value for _, value in points) / len(points)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _share(value: float) -> float:
    return round(100 * min(1.0, max(0.0, value)), 2)


def _strip(*parts: Markup) -> Markup:
    return Markup('<svg class="strip" width="100%" height="24" aria-hidden="true">{}</svg>').format(
        Markup("").join(parts)
    )


def _grid() -> Markup:
    lines = (
        Markup('<line class="grid" x1="{0}%" x2="{0}%" y1="0" y2="24"/>').format(at) for at in (0, 25, 50, 75, 100)
    )
    return Markup("").join(lines)


def _whisker(interval: Sequence[float], kind: str, height: int = 12) -> Markup:
    return Markup('<line class="whisker {0}" x1="{1}%" x2="{2}%" y1="{3}" y2="{3}"/>').format(
        kind, *map(_share, interval), height
    )


def _dot(value: float, kind: str, height: int = 12) -> Markup:
    return Markup('<circle class="{}" cx="{}%" cy="{}" r="4.5"/>').format(kind, _share(value), height)
