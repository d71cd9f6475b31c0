"""A contact sheet of pictures with their boxes, for the data report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image as Pictures
from PIL import ImageDraw, ImageOps

from vlmflow.data.boxes import pixels
from vlmflow.data.records import Record

_SIDE, _LINE, _COLUMNS = 320, 16, 3
_COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080")


def draw_boxes(records: Sequence[Record], path: Path) -> None:
    """Write a JPEG with the first picture of each record that has boxes, drawn and named, its question below."""
    rows = -(-len(records) // _COLUMNS)
    sheet = Pictures.new("RGB", (_COLUMNS * _SIDE, rows * (_SIDE + _LINE)), "white")
    for place, record in enumerate(records):
        left, top = place % _COLUMNS * _SIDE, place // _COLUMNS * (_SIDE + _LINE)
        sheet.paste(_drawn(record), (left, top))
        question = next(turn.text for turn in record.turns if turn.role == "user").replace("<image>", "")
        ImageDraw.Draw(sheet).text((left + 4, top + _SIDE), " ".join(question.split())[:52], fill="black")
    sheet.save(path, "JPEG", quality=85, subsampling=0)  # lines two pixels wide keep their colour


def _drawn(record: Record) -> Pictures.Image:
    """The picture that the record's first box is in, scaled to fit a square, with all boxes in it."""
    number = record.boxes[0].image
    image = record.images[number]
    with Pictures.open(image.path) as opened:
        picture = ImageOps.contain(ImageOps.exif_transpose(opened).convert("RGB"), (_SIDE, _SIDE))
    draw = ImageDraw.Draw(picture)
    scale = picture.width / image.width, picture.height / image.height
    for index, box in enumerate(box for box in record.boxes if box.image == number):
        colour = _COLOURS[index % len(_COLOURS)]
        for corners in box.bbox:
            edges = pixels(corners, box.type, (image.width, image.height))
            x1, y1, x2, y2 = (edge * scale[side % 2] for side, edge in enumerate(edges))
            # The right and lower edge of a picture lie outside its last pixels.
            last = max(x1, min(x2, picture.width - 1)), max(y1, min(y2, picture.height - 1))
            draw.rectangle((x1, y1, *last), outline=colour, width=2)
            if box.ref:
                draw.text((x1 + 3, y1 + 2), box.ref[:40], fill=colour)
    return picture
