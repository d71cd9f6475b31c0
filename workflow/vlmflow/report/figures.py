"""Figures of the report as inline SVG. Colours come from the page's style sheet, by class."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

Point = tuple[float, float]

STYLES = (Path(__file__).resolve().parent / "figures.css").read_text(encoding="utf-8")
"""Colours, light and dark, and the looks of the figures; for the page and for pictures on their own."""
_WIDTH, _LEFT, _RIGHT, _TOP = 480, 46, 474, 8
_LOSS_BOTTOM, _PANEL, _PANEL_STEP = 168, 30, 50  # the small panels below: height, and from one to the next
_MARGIN, _TITLE = 16, 30  # of a picture on its own
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


def interval_bar(value: float, interval: Sequence[float], kind: str, top: float = 1.0) -> Markup:
    """A dot at a score on its 95% interval, on a scale from 0 to ``top``; ``kind`` is a style sheet class."""
    return _strip(_grid(), _whisker(interval, kind, top), _dot(value, kind, top))


def before_and_after(
    before: dict[str, Any], after: dict[str, Any], marks: Sequence[float] = (), top: float = 1.0
) -> Markup:
    """Before and after (``value``, ``ci95``) of one category one above the other; ``marks`` are baselines to pass."""
    ticks = Markup("").join(
        Markup('<line class="mark" x1="{0}%" x2="{0}%" y1="3" y2="21"/>').format(_share(mark, top)) for mark in marks
    )
    lanes = Markup("").join(
        _whisker(end["ci95"], kind, top, lane) + _dot(end["value"], kind, top, lane)
        for end, kind, lane in ((before, "before", 7), (after, "after", 17))
    )
    return _strip(_grid(), ticks, lanes)


def scale(top: float = 1.0) -> Markup:
    """The labels, times 100, of the scale that :func:`interval_bar` and :func:`before_and_after` share."""
    labels = ((0, "start"), (25, "middle"), (50, "middle"), (75, "middle"), (100, "end"))
    text = Markup('<text x="{}%" y="12" text-anchor="{}">{:g}</text>')
    return Markup('<svg class="scale" width="100%" height="16" aria-hidden="true">{}</svg>').format(
        Markup("").join(text.format(place, anchor, place * top) for place, anchor in labels)
    )


def top_of(values: Iterable[float]) -> float:
    """The upper end of a scale for scores: 1, or the next of 2, 4, 8 and so on if a value exceeds it."""
    return float(2 ** math.ceil(math.log2(max(1.0, *values))))


def loss_figure(name: str, log: list[dict[str, Any]]) -> dict[str, Any]:
    """``title``, ``caption``, ``svg`` and ``height`` of a training log: loss, learning rate and gradient norm by step.

    A step that was logged twice (training resumed) counts once, with its last values; a loss that is not finite breaks
    no axis but is counted in the caption.
    """
    rows = [row for _, row in sorted({row["step"]: row for row in log}.items())]
    losses = _points(rows, "loss")
    if not losses:
        return {"title": name, "caption": "No step was logged.", "svg": None, "height": 0}
    panels = [("learning rate", _points(rows, "lr")), ("gradient norm", _points(rows, "grad_norm"))]
    panels = [(label, points) for label, points in panels if points]
    height = _LOSS_BOTTOM + _PANEL_STEP * len(panels) + 26
    return {
        "title": name,
        "caption": _caption(rows, losses),
        "svg": _curves(losses, panels, height),
        "height": height,
    }


def picture(curves: Sequence[dict[str, Any]]) -> str:
    """The figures of :func:`loss_figure` one below the other as an SVG file of its own, light or dark as the viewer."""
    drawn, top = Markup(""), _MARGIN
    for curve in curves:
        drawn += Markup('<g transform="translate({},{})"><text class="title" y="13">{}</text></g>').format(
            _MARGIN, top, curve["title"]
        )
        drawn += Markup('<g transform="translate({},{})">{}</g>').format(_MARGIN, top + _TITLE, curve["svg"] or "")
        top += _TITLE + curve["height"] + _MARGIN
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" width="{0}" height="{1}" viewBox="0 0 {0} {1}"><style>{2}</style>'
        '<rect class="ground" width="100%" height="100%"/>{3}</svg>\n'
    ).format(_WIDTH + 2 * _MARGIN, top, Markup(_resolved(STYLES)), drawn)


def smooth(points: list[Point], window: int) -> list[Point]:
    """At each place the line fitted to the ``window`` points around it, the last ones at the ends: there is no lag."""
    x, y = (np.asarray(values, float) for values in zip(*points, strict=True))
    x -= x.mean()
    first = np.clip(np.arange(len(points)) - window // 2, 0, max(0, len(points) - window))
    last = np.minimum(first + window, len(points))

    def within(values: np.ndarray) -> np.ndarray:
        """Mean over the points around each place."""
        sums = np.concatenate(([0.0], np.cumsum(values)))
        return (sums[last] - sums[first]) / (last - first)

    spread = within(x * x) - within(x) ** 2
    slope = (within(x * y) - within(x) * within(y)) / np.where(spread > 0, spread, np.inf)
    fitted = within(y) + slope * (x - within(x))
    return [(place, value) for (place, _), value in zip(points, fitted.tolist(), strict=True)]


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """At most ``most`` round numbers (1, 2 or 5 times a power of ten apart) between two bounds."""
    if not high > low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    steps = (factor * power for factor in (1, 2, 5, 10, 20))
    step = next(step for step in steps if math.floor(high / step) - math.ceil(low / step) < most)
    return [round(i * step, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _curves(losses: list[Point], panels: list[tuple[str, list[Point]]], height: int) -> Markup:
    x = Axis(losses[0][0], losses[-1][0], _LEFT, _RIGHT)
    values = [value for _, value in losses]
    low, high = min(values), max(values)
    margin = (high - low) * 0.05 or 0.05 * abs(high) or 1.0
    y = Axis(max(0.0, low - margin) if low >= 0 else low - margin, high + margin, _LOSS_BOTTOM, _TOP)
    parts = [_gridline(y(tick), f"{tick:g}") for tick in ticks(y.low, y.high)]
    parts += [
        Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(x(tick), height - 6, f"{tick:,g}")
        for tick in ticks(x.low, x.high, 6)
    ]
    parts.append(_line(losses, x, y, "raw" if len(losses) >= 20 else "smooth"))
    if len(losses) >= 20:
        parts.append(_line(smooth(losses, max(5, len(losses) // 12) | 1), x, y, "smooth"))
    for number, (label, points) in enumerate(panels, start=1):
        parts.append(_panel(label, points, x, _LOSS_BOTTOM + number * _PANEL_STEP))
    return Markup(
        '<svg class="curves" width="{0}" height="{1}" viewBox="0 0 {0} {1}" role="img"'
        ' aria-label="Loss, learning rate and gradient norm by step">{2}</svg>'
    ).format(_WIDTH, height, Markup("").join(parts))


def _panel(label: str, points: list[Point], x: Axis, bottom: int) -> Markup:
    """A small curve from zero up, named above its left end."""
    y = Axis(0.0, max(value for _, value in points) or 1.0, bottom, bottom - _PANEL)
    name = Markup('<text x="{}" y="{}">{}</text>').format(_LEFT, bottom - _PANEL - 5, label)
    lines = _gridline(bottom, "0"), _gridline(bottom - _PANEL, f"{y.high:.2g}")
    return Markup("").join([name, *lines, _line(points, x, y, "small")])


def _line(points: list[Point], x: Axis, y: Axis, kind: str) -> Markup:
    stride = math.ceil(len(points) / _MOST_POINTS)
    thinned = points[::stride] + ([points[-1]] if (len(points) - 1) % stride else [])
    path = " ".join(f"{x(a):g},{y(b):g}" for a, b in thinned)
    return Markup('<polyline class="{}" points="{}"/>').format(kind, path)


def _gridline(height: float, label: str) -> Markup:
    return Markup(
        '<line class="grid" x1="{0}" x2="{1}" y1="{2}" y2="{2}"/><text x="{3}" y="{4}" text-anchor="end">{5}</text>'
    ).format(_LEFT, _RIGHT, height, _LEFT - 6, height + 4, label)


def _caption(rows: list[dict[str, Any]], losses: list[Point]) -> str:
    def numbers(name: str) -> list[float]:
        return [value for _, value in _points(rows, name)]

    last = losses[-max(1, len(losses) // 20) :]
    parts = [f"{rows[-1]['step']:,} steps", f"loss {_mean(losses[:1]):.3g} at first, {_mean(last):.3g} at the end"]
    spoken = (
        ("lr", max, "peak learning rate {:.2g}"),
        ("samples_per_s", statistics.median, "{:.3g} samples/s"),
        ("tokens_per_s", statistics.median, "{:,.0f} tokens/s"),
        ("mfu", statistics.median, "{:.0%} of the arithmetic peak"),
        ("data_wait", statistics.mean, "{:.1%} of the time waiting for data"),
        ("memory_gb", max, "{:.1f} GB"),
    )
    parts += [text.format(summary(numbers(name))) for name, summary, text in spoken if numbers(name)]
    parts += [f"{timedelta(seconds=round(max(numbers('seconds'))))} h"] if numbers("seconds") else []
    lost = sum(1 for row in rows if "loss" in row and not _finite(row["loss"]))
    parts += [f"not finite and not drawn: {lost}"] if lost else []
    return "; ".join(parts) + "."


def _points(rows: list[dict[str, Any]], name: str) -> list[Point]:
    return [(row["step"], row[name]) for row in rows if _finite(row.get(name))]


def _mean(points: list[Point]) -> float:
    return math.fsum(value for _, value in points) / len(points)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _resolved(styles: str) -> str:
    """``styles`` without variables, which few programs but browsers know: the rules in light, then those for dark."""
    light, dark = (
        dict(re.findall(r"--(\w+): ([^;]+);", block)) for block in re.findall(r":root \{(.*?)\}", styles, re.S)
    )
    rules = "".join(line + "\n" for line in styles.splitlines() if line.startswith(("svg", ".", "polyline")))

    def filled(palette: dict[str, str]) -> str:
        return re.sub(r"var\(--(\w+)\)", lambda found: palette[found[1]], rules)

    return f"{filled(light)}@media (prefers-color-scheme: dark) {{\n{filled(light | dark)}}}\n"


def _share(value: float, top: float) -> float:
    return round(100 * min(1.0, max(0.0, value / top)), 2)


def _strip(*parts: Markup) -> Markup:
    return Markup('<svg class="strip" width="100%" height="24" aria-hidden="true">{}</svg>').format(
        Markup("").join(parts)
    )


def _grid() -> Markup:
    lines = (
        Markup('<line class="grid" x1="{0}%" x2="{0}%" y1="0" y2="24"/>').format(at) for at in (0, 25, 50, 75, 100)
    )
    return Markup("").join(lines)


def _whisker(interval: Sequence[float], kind: str, top: float, height: int = 12) -> Markup:
    low, high = (_share(end, top) for end in interval)
    return Markup('<line class="whisker {0}" x1="{1}%" x2="{2}%" y1="{3}" y2="{3}"/>').format(kind, low, high, height)


def _dot(value: float, kind: str, top: float, height: int = 12) -> Markup:
    return Markup('<circle class="{}" cx="{}%" cy="{}" r="4.5"/>').format(kind, _share(value, top), height)
