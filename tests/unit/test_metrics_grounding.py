"""Boxes of an answer against those of the reference, computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from vlmflow.evaluation.metrics import Item
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
    assert iou(Item("nothing", ("There is none.",))) == 1.0
    assert iou(Item(BOX, ("There is none.",))) == 0.0
    assert iou(Item("[[0, 0, 100, 100]]", ("[[500, 500, 600, 600]]", "[[0, 0, 100, 100]]"))) == 1.0
