"""Boxes of an answer against those of the reference, computed by hand."""

from __future__ import annotations

import time

import numpy as np
import pytest

from vlmflow.errors import UserError
from vlmflow.evaluation.metrics import Item, find_metric
from vlmflow.evaluation.metrics.grounding import acc_at_half, iou, overlap, read_boxes

BOX = "<ref>the car</ref><box>[[100, 200, 300, 400]]</box>"
SIZE = ((2000, 1000),)


def test_iou_by_hand() -> None:
    left = np.array([[0.0, 0, 2, 2], [0, 0, 1, 1], [1, 1, 1, 5]])
    right = np.array([[1.0, 1, 3, 3], [0, 0, 2, 1]])
    assert overlap(left, right) == pytest.approx(np.array([[1 / 7, 1 / 2], [0, 1 / 2], [0, 0]]))


@pytest.mark.parametrize(
    "text",
    [
        BOX,
        "the car[[100, 200, 300, 400]]",
        "<box>[100,200,300,400]</box>",
        "<|box_start|>(100,200),(300,400)<|box_end|>",
        "It is at [0.1, 0.2, 0.3, 0.4].",
        "[[0.1, 0.2, 0.3, 0.4]]",
        '```json\n[{"bbox_2d": [200, 200, 600, 400], "label": "car"}]\n```',
        "[200, 200,\n 600, 400]",
        "[ 200.0, 200.0, 600.0, 400.0 ]",
    ],
)
def test_boxes_as_models_write_them(text: str) -> None:
    assert read_boxes(text, SIZE) == pytest.approx(np.array([[0.1, 0.2, 0.3, 0.4]]))
    assert iou(Item(text, (BOX,), SIZE)) == pytest.approx(1.0)


def test_pixels_need_the_size_of_the_only_picture() -> None:
    assert read_boxes("[100, 200, 300, 400]") == pytest.approx(np.array([[0.1, 0.2, 0.3, 0.4]]))
    assert read_boxes("[100, 200, 300, 400]", (*SIZE, (10, 10))) == pytest.approx(np.array([[0.1, 0.2, 0.3, 0.4]]))


def test_a_list_of_boxes_has_one_unit() -> None:
    assert read_boxes("[[100, 200, 300, 400], [0, 0, 500, 500]] [200, 200, 600, 400]", SIZE) == pytest.approx(
        np.array([[0.1, 0.2, 0.3, 0.4], [0, 0, 0.5, 0.5], [0.1, 0.2, 0.3, 0.4]])
    )
    assert len(read_boxes("no box [1, 2, 3] [1, 2, 3, 4, 5] [a, b, c, d]")) == 0


@pytest.mark.parametrize(
    ("prediction", "expected", "accuracy"),
    [
        (BOX, 1.0, 1.0),
        ("[[100, 200, 300, 300]]", 0.5, 1.0),
        ("[[200, 200, 400, 400]]", 1 / 3, 0.0),
        ("[[300, 400, 500, 600]]", 0.0, 0.0),
        ("[[300, 400, 100, 200]]", 0.0, 0.0),
        ("I see no car.", 0.0, 0.0),
        (f"{BOX} [[500, 500, 600, 600]]", 0.5, 0.5),
    ],
)
def test_one_box(prediction: str, expected: float, accuracy: float) -> None:
    assert iou(Item(prediction, (BOX,))) == pytest.approx(expected)
    assert acc_at_half(Item(prediction, (BOX,))) == pytest.approx(accuracy)


def test_several_boxes_are_paired() -> None:
    two = "<box>[[0, 0, 100, 100], [500, 500, 600, 600]]</box>"
    swapped = "<box>[[500, 500, 600, 550]]</box> and <box>[[0, 0, 100, 100]]</box>"
    assert iou(Item(swapped, (two,))) == pytest.approx(0.75)
    assert acc_at_half(Item(swapped, (two,))) == 1.0
    assert iou(Item("[[0, 0, 100, 100], [0, 0, 100, 100]]", (two,))) == 0.5
    assert iou(Item("there is none", ("There is none.",))) == acc_at_half(Item("None", ("none",))) == 1.0
    assert iou(Item("unknown", ("zero",))) == acc_at_half(Item("unknown", ("zero",))) == 0.0
    assert iou(Item(BOX, ("There is none.",))) == 0.0
    assert iou(Item("[[0, 0, 100, 100]]", ("[[500, 500, 600, 600]]", "[[0, 0, 100, 100]]"))) == 1.0


@pytest.mark.parametrize("name", ["iou", "acc_at_0.5"])
def test_references_without_any_box_are_refused(name: str) -> None:
    items = [Item("[[0, 0, 100, 100]]", ("x1=0 y1=0 x2=100 y2=100",)), Item("none", ("none",))]
    with pytest.raises(UserError, match=r"(?s)no box in any reference.*write boxes as <box>"):
        find_metric(name).score(items)
    assert find_metric(name).score([*items, Item(BOX, (BOX,))]) == [0, 1, 1]


def test_thousands_of_boxes_are_no_trouble() -> None:
    boxes = np.random.default_rng(0).integers(0, 500, size=(2_000, 2))
    texts = [" ".join(f"[[{x}, {y}, {x + 300}, {y + 300 + more}]]" for x, y in boxes) for more in (0, 9)]
    started = time.monotonic()
    assert iou(Item(texts[0], (texts[1],))) > 0.9
    assert time.monotonic() - started < 8
