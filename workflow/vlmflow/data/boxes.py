"""Boxes: checked against the picture, and written into the text as InternVL reads them.

``<ref>name</ref><box>[[x1, y1, x2, y2]]</box>`` with coordinates in thousandths of the picture's width and height
(InternVL's grounding documentation). Three formulas are in use among the peers; ``round-1000`` is the documented one,
``truncate-999`` is what ms-swift 2 trains with (swift/llm/utils/template.py, ``normalize_bbox``).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence

from vlmflow.data.records import Box, Corners
from vlmflow.data.report import shown

REF_TAG, BOX_TAG = "<ref-object>", "<bbox>"
Size = tuple[int, int]
Thousandths = tuple[int, int, int, int]
Wrong = tuple[str, str]
"""Reason (its kind stands before the colon) and advice."""

_TAG = re.compile(f"{REF_TAG}|{BOX_TAG}")
# No class here matches what may follow it, so that hostile text costs no more than its length.
_MARKUP = re.compile(r"(?:<ref>([^<>]*)</ref>\s*)?<box>([^<>]*)</box>")
_HAIR = 2  # pixels by which edges that were rounded or counted from 1 lie outside
_NO_NAME = re.compile("[<>\x00-\x1f\x7f\ud800-\udfff]")


def thousandths(corners: Corners, kind: str, size: Size, scale: str) -> Thousandths:
    """Corners of any kind as the integers of the text.

    ``round-1000`` rounds to 0..1000, halves away from zero (Python's ``round`` takes them to the even neighbour).
    ``truncate-999`` cuts off to 0..999, but takes ``norm_1000`` as it is; it computes in ms-swift's order, so that the
    integers are the same to the last one.
    """
    sides = size if kind == "real" else (1, 1)
    if scale == "truncate-999":
        factor = 1 if kind == "norm_1000" else 999
        x1, y1, x2, y2 = (int(value / sides[index % 2] * factor) for index, value in enumerate(corners))
    else:
        # Multiplied before divided: that keeps a half of whole pixels exact.
        factor = 1 if kind == "norm_1000" else 1000
        x1, y1, x2, y2 = (_rounded(value * factor / sides[index % 2]) for index, value in enumerate(corners))
    return x1, y1, x2, y2


def _rounded(value: float) -> int:
    whole = math.floor(abs(value))
    return int(math.copysign(whole + (abs(value) - whole >= 0.5), value))


def pixels(corners: Corners, kind: str, size: Size) -> Corners:
    """Corners of any kind in pixels of the upright picture."""
    unit = {"real": 1, "norm_1": 1, "norm_1000": 1000}[kind]
    sides = (1, 1) if kind == "real" else size
    return tuple(value * sides[index % 2] / unit for index, value in enumerate(corners))  # type: ignore[return-value]


def wrong_box(box: Box, sizes: Sequence[Size], scale: str = "round-1000") -> Iterator[Wrong]:
    """What is wrong with the boxes of one thing; ``sizes`` are (width, height) of the record's pictures.

    Nothing is clipped: a box a hair outside is refused. So is one that has no area left in the text.
    """
    if not 0 <= box.image < len(sizes):
        yield f"box without a picture: number {box.image} of {len(sizes)}", "pictures are counted from 0"
        return
    size = sizes[box.image]
    limits = {"real": size, "norm_1": (1, 1), "norm_1000": (1000, 1000)}[box.type]
    for corners in box.bbox:
        if not _finite(corners):
            yield "box out of range: not all its numbers are finite", "write numbers"
            continue
        x1, y1, x2, y2 = corners
        written = f"[{x1:g}, {y1:g}, {x2:g}, {y2:g}]"
        if x1 >= x2 or y1 >= y2:
            yield f"box without area: {written}", "a box is x1, y1, x2, y2 with x1 < x2 and y1 < y2"
        elif min(corners) < 0 or x2 > limits[0] or y2 > limits[1]:
            yield (
                f"box out of range: {written} in {box.type}, picture {size[0]} x {size[1]}",
                _advice(box.type, corners, size),
            )
        elif box.type != "norm_1" and x2 <= 1 and y2 <= 1 and any(value % 1 for value in corners):
            yield f"box of another type: {written} in {box.type}", "these look like shares: set bbox_type to norm_1"
        elif not _has_area(thousandths(corners, box.type, size, scale)):
            reason = f"box without area: {written} in {box.type} is too thin for thousandths of {size[0]} x {size[1]}"
            yield reason, "leave it out, or cut the picture into parts"


def _finite(corners: Corners) -> bool:
    try:
        return all(map(math.isfinite, corners))
    except OverflowError:  # a whole number larger than any float
        return False


def _has_area(box: Thousandths) -> bool:
    return box[0] < box[2] and box[1] < box[3]


def _advice(kind: str, corners: Corners, size: Size) -> str:
    x2, y2 = corners[2:]
    if min(corners) >= 0:
        if kind != "real" and x2 <= size[0] and y2 <= size[1]:
            return "correct the numbers, or set bbox_type to real if these are pixels"
        a_hair = kind == "real" and x2 < size[0] + _HAIR and y2 < size[1] + _HAIR
        if kind != "norm_1000" and max(corners) <= 1000 and not a_hair:
            return "correct the numbers, or set bbox_type to norm_1000 if these are thousandths"
    return "correct the numbers, or bbox_type; pixels are those of the upright picture"


def write_ref(name: str) -> str:
    """A name as the text has it."""
    return f"<ref>{name}</ref>"


def write_boxes(boxes: Sequence[Thousandths]) -> str:
    """Boxes as the text has them, without blanks around the list."""
    return f"<box>[{', '.join(str(list(box)) for box in boxes)}]</box>"


def substitute(
    texts: Sequence[str], refs: Sequence[str], boxes: Sequence[Box], sizes: Sequence[Size], scale: str
) -> list[str]:
    """The texts with ms-swift's tags filled in, names and boxes each in their own order over all texts."""
    names = iter(refs)
    written = (write_boxes([thousandths(c, box.type, sizes[box.image], scale) for c in box.bbox]) for box in boxes)
    return [
        _TAG.sub(lambda tag: write_ref(next(names)) if tag[0] == REF_TAG else next(written), text) for text in texts
    ]


def wrong_tags(texts: Sequence[str], refs: Sequence[str], boxes: Sequence[Box]) -> Iterator[Wrong]:
    """Tags and objects that do not go together.

    Names may stay unused, as the boxes carry them; so may boxes whose names the text has. Text that has its boxes
    written out already needs no tags at all. A name that holds markup would add tags, placeholders or tokens unseen.
    """
    for name in refs:
        if wrong := _NO_NAME.search(name):
            advice = "a name is plain text without '<', '>' and control characters"
            yield f"markup in a name: {wrong[0]!a} in {shown(name)}", advice
    asked = {tag: sum(text.count(tag) for text in texts) for tag in (REF_TAG, BOX_TAG)}
    if not any(asked.values()) and any("<box>" in text for text in texts):
        return
    advice = "write {} into the text once for each {} of 'objects'"
    if not all(name.strip() for name in refs[: asked[REF_TAG]]):
        yield f"empty name: {REF_TAG} stands for nothing", "name every object that the text mentions"
    if asked[REF_TAG] > len(refs):
        yield f"number of tags: {asked[REF_TAG]} {REF_TAG} for {len(refs)} name(s)", advice.format(REF_TAG, "name")
    if asked[BOX_TAG] != len(boxes) and (asked[BOX_TAG] or not asked[REF_TAG]):
        yield f"number of tags: {asked[BOX_TAG]} {BOX_TAG} for {len(boxes)} box(es)", advice.format(BOX_TAG, "box")


def parse(text: str) -> list[tuple[str, tuple[Thousandths, ...]]]:
    """(name, boxes) of the markup in a right text, with or without blanks; the name is empty when there is none."""
    if "<box>" not in text:
        return []
    return [(match[1] or "", tuple(tuple(box) for box in json.loads(match[2]))) for match in _MARKUP.finditer(text)]


def wrong_markup(text: str) -> Iterator[Wrong]:
    """What is wrong with boxes that stand in the text."""
    if "<box" not in text and "</box" not in text:
        return
    advice = "write <box>[[x1, y1, x2, y2]]</box> with whole numbers from 0 to 1000, x1 < x2 and y1 < y2"
    found = list(_MARKUP.finditer(text))
    if not len(found) == text.count("<box>") == text.count("</box>"):
        yield "wrong box in the text: <box> without </box>, or the reverse", advice
        return
    if text.count("<ref>") != text.count("</ref>"):
        yield "wrong box in the text: <ref> without </ref>, or the reverse", "write <ref>name</ref>"
    for match in found:
        try:
            boxes = json.loads(match[2])
        except (ValueError, RecursionError):
            boxes = None
        if not _is_boxes(boxes):
            yield f"wrong box in the text: {shown(match[2].strip(), 60)}", advice


def _is_boxes(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(_is_box(box) for box in value)


def _is_box(box: object) -> bool:
    if not isinstance(box, list) or len(box) != 4 or not all(type(number) is int for number in box):
        return False
    x1, y1, x2, y2 = box
    return 0 <= x1 < x2 <= 1000 and 0 <= y1 < y2 <= 1000
