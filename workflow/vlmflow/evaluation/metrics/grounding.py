"""Boxes: intersection over union (IoU), and accuracy at IoU 0.5 as RefCOCO's evaluations count it.

Boxes are read from the text, whatever the model writes:

- ``<box>[[x1, y1, x2, y2]]</box>``, ``[[x1, y1, x2, y2]]`` (what is left when special tokens are skipped) and
  ``(x1,y1),(x2,y2)`` of Qwen-VL: thousandths of width and height;
- ``[x1, y1, x2, y2]``, in JSON too: pixels of the only picture; thousandths when its size is not known;
- numbers from 0 to 1 with a decimal point, in any brackets: shares of width and height.

Several boxes are paired by IoU, the best pair first, each box once; the sum is divided by the number of boxes on the
side that has more, so that a box too many costs as much as a box too few. A reference without boxes needs the same
text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmflow.errors import UserError
from vlmflow.evaluation.metrics.register import Item, Size, item_metric
from vlmflow.evaluation.metrics.text import normalise

Boxes = NDArray[np.float64]
"""(n, 4): left, upper, right and lower edge as shares of width and height."""

_HALF = 0.5 - 1e-9  # shares of a picture are rounded
_N = r"(-?\d{1,9}(?:\.\d{1,20})?)"
_BOX = re.compile(rf"\[{_N},{_N},{_N},{_N}\]|\({_N},{_N}\),\({_N},{_N}\)")


def check_boxes(items: Sequence[Item]) -> None:
    """:class:`UserError` when no reference of an evaluation has a box, so that nothing would be measured."""
    if not any(len(read_boxes(reference, item.sizes)) for item in items for reference in item.references):
        raise UserError(
            "iou and acc_at_0.5 find no box in any reference",
            "write boxes as <box>[[x1, y1, x2, y2]]</box>, [x1, y1, x2, y2] or (x1,y1),(x2,y2), or name other metrics",
            field="metrics",
        )


@item_metric("iou", check_boxes)
def iou(item: Item) -> float:
    """Mean IoU of the paired boxes, 0 for a box without a partner."""
    return max(_mean(item, reference, lambda values: values) for reference in item.references)


@item_metric("acc_at_0.5", check_boxes)
def acc_at_half(item: Item) -> float:
    """Share of boxes whose partner overlaps with an IoU of at least 0.5; of a single box, 0 or 1."""
    return max(_mean(item, reference, lambda values: values >= _HALF) for reference in item.references)


def read_boxes(text: str, sizes: Sequence[Size] = ()) -> Boxes:
    """The boxes in a text about pictures of these sizes (width, height in pixels)."""
    text, found, list_end = "".join(text.split()), [], -1
    for match in _BOX.finditer(text):
        start = match.start()
        opens = text[start] == "(" or text[start - 1 : start] == "[" or text.endswith("<box>", 0, start)
        in_list = opens or (start - 1 == list_end and text[list_end] == ",")
        list_end = match.end() if in_list else -1
        numbers = [number for number in match.groups() if number is not None]
        found.append(_shares(np.array(numbers, dtype=np.float64), "." in "".join(numbers), in_list, sizes))
    return np.array(found, dtype=np.float64).reshape(-1, 4)


def _shares(box: NDArray[np.float64], decimal: bool, in_list: bool, sizes: Sequence[Size]) -> NDArray[np.float64]:
    if decimal and box.max() <= 1:
        return box
    if in_list or len(set(sizes)) != 1:
        return box / 1000
    width, height = sizes[0]
    return box / (width, height, width, height)


def overlap(left: Boxes, right: Boxes) -> NDArray[np.float64]:
    """IoU of each box of ``left`` with each of ``right``; 0 for a box without area."""
    corner = np.minimum(left[:, None, 2:], right[None, :, 2:]) - np.maximum(left[:, None, :2], right[None, :, :2])
    common = corner.clip(0).prod(axis=-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clip(0).prod(axis=-1) for boxes in (left, right)]
    union = areas[0][:, None] + areas[1][None, :] - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


def _mean(item: Item, reference: str, worth: Callable[[Boxes], NDArray[Any]]) -> float:
    """What the paired boxes are worth, over the number of boxes of the larger side."""
    given, wanted = read_boxes(item.prediction, item.sizes), read_boxes(reference, item.sizes)
    boxes = max(len(given), len(wanted))
    if boxes == 0:
        return float(normalise(item.prediction) == normalise(reference))
    return min(float(worth(_paired(overlap(given, wanted))).sum()) / boxes, 1.0)


def _paired(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The IoU of each pair, out of those of all boxes (given, wanted): the best first, each box once."""
    rows, columns = np.nonzero(values)
    best_first = np.argsort(-values[rows, columns], kind="stable")
    pairs: dict[int, int] = {}
    taken: set[int] = set()
    for row, column in zip(rows[best_first].tolist(), columns[best_first].tolist(), strict=True):
        if row not in pairs and column not in taken:
            pairs[row] = column
            taken.add(column)
    return values[list(pairs), list(pairs.values())]
