"""The contact sheet of boxes in the data report."""

from pathlib import Path

import pytest
from msgspec.structs import replace
from PIL import Image as Pictures

from vlmflow.data.draw import draw_boxes
from vlmflow.data.records import Box, Image, Record, Turn


def drawn_record(folder: Path, name: str, orientation: int = 1) -> Record:
    """A grey picture, 200 x 100 upright, whose left half is the box."""
    stored = (200, 100) if orientation == 1 else (100, 200)
    exif = Pictures.Exif()
    exif[0x0112] = orientation
    Pictures.new("RGB", stored, (90, 90, 90)).save(folder / name, exif=exif, quality=95)
    box = Box(0, "norm_1", ((0, 0, 0.5, 1),), "left")
    turns = (Turn("user", "<image>\nWhere is the left half?"), Turn("assistant", "Here."))
    return Record(name, (Image(str(folder / name), 200, 100, ""),), turns, boxes=(box,))


def coloured(picture: Pictures.Image, box: tuple[int, int, int, int]) -> int:
    """How many pixels of a part are neither grey, black nor white."""
    return sum(max(pixel) - min(pixel) > 60 for pixel in picture.crop(box).convert("RGB").get_flattened_data())


@pytest.mark.parametrize("orientation", [1, 6])
def test_the_sheet_shows_pictures_upright_with_boxes_where_they_are(tmp_path, orientation):
    record = drawn_record(tmp_path, "a.jpg", orientation)
    draw_boxes([record], tmp_path / "sheet.jpg")
    with Pictures.open(tmp_path / "sheet.jpg") as sheet:
        sheet.load()
        assert sheet.format == "JPEG"
        # Thumbnail 320 x 160: the box is its left half, its right edge near 160.
        assert coloured(sheet, (150, 40, 170, 150)) > 100
        assert coloured(sheet, (200, 0, 320, 160)) == 0
        assert min(sheet.convert("L").crop((0, 320, 320, 336)).get_flattened_data()) < 100, "no question below"


def test_the_sheet_holds_twelve(tmp_path):
    records = [drawn_record(tmp_path, f"{index}.jpg") for index in range(12)]
    draw_boxes(records, tmp_path / "sheet.jpg")
    with Pictures.open(tmp_path / "sheet.jpg") as sheet:
        left, top = 2 * sheet.width // 3, 3 * sheet.height // 4
        assert coloured(sheet, (left, top, sheet.width, sheet.height)) > 100, "the last one is drawn"


@pytest.mark.parametrize("orientation", [1, 6, 8])
def test_the_lines_of_a_box_have_its_colour_on_all_four_sides(tmp_path, orientation):
    record = drawn_record(tmp_path, "a.png", orientation)
    record = replace(record, boxes=(Box(0, "real", ((20, 10, 180, 90),)), Box(0, "norm_1000", ((0, 0, 1000, 1000),))))
    draw_boxes([record], tmp_path / "sheet.jpg")
    inner, outer = (0xE6, 0x19, 0x4B), (0x3C, 0xB4, 0x4B)
    with Pictures.open(tmp_path / "sheet.jpg") as sheet:  # shows it at 320 x 160: 1.6 pixels for each of 200 x 100
        for place, colour in (
            ((32, 80), inner), ((287, 80), inner), ((160, 16), inner), ((160, 143), inner),
            ((0, 80), outer), ((319, 80), outer), ((160, 0), outer), ((160, 159), outer), ((100, 80), (90, 90, 90)),
        ):  # fmt: skip
            seen = sheet.getpixel(place)
            assert all(abs(a - b) < 40 for a, b in zip(seen, colour, strict=True)), (place, seen, colour)


def test_names_and_questions_of_any_script_are_drawn(tmp_path):
    record = drawn_record(tmp_path, "a.png")
    turns = (
        Turn("system", "简短"),
        Turn("user", "<image>左边是什么？ 🐈 \u0645\u0631\u062d\u0628\u0627"),
        Turn("assistant", "猫"),
    )
    draw_boxes([replace(record, turns=turns, boxes=(replace(record.boxes[0], ref="猫 🐈"),))], tmp_path / "sheet.jpg")
    assert (tmp_path / "sheet.jpg").stat().st_size > 1000


def test_transparent_palette_and_grey_pictures_are_drawn(tmp_path):
    records = []
    for mode in ("L", "P", "LA", "RGBA", "CMYK", "1"):
        name = f"{mode}.tiff"
        Pictures.new(mode, (200, 100)).save(tmp_path / name)
        picture = Image(str(tmp_path / name), 200, 100, "")
        records.append(replace(drawn_record(tmp_path, "a.png"), images=(picture,)))
    draw_boxes(records, tmp_path / "sheet.jpg")
    assert (tmp_path / "sheet.jpg").stat().st_size > 1000
