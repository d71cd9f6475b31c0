"""Every picture is decoded to its last byte, and nothing outside its folder is opened."""

from __future__ import annotations

import hashlib
import os
import re
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pictures

from vlmflow.data.images import ImageFacts, check_image, check_images
from vlmflow.errors import Problem
from vlmflow.files import sha256_file

NOISE = Pictures.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))


def encoded(picture: Pictures.Image, form: str, **options: Any) -> bytes:
    stream = BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


def facts(root: Path, name: str) -> ImageFacts:
    found = check_image(root, name)
    assert isinstance(found, ImageFacts), found
    return found


def test_facts(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    NOISE.save(tmp_path / "sub" / "a.png")
    found = facts(tmp_path, "sub/a.png")
    pixels = hashlib.sha256(b"60x40:" + NOISE.tobytes()).digest()
    assert (found.width, found.height, found.pixels) == (60, 40, pixels)
    assert found.sha256.hex() == sha256_file(tmp_path / "sub" / "a.png")


def test_the_pixel_hash_is_of_the_picture_not_of_its_file(tmp_path: Path) -> None:
    for name, form in (("a.png", "PNG"), ("b.bmp", "BMP"), ("c.tif", "TIFF")):
        (tmp_path / name).write_bytes(encoded(NOISE, form))
    found = [facts(tmp_path, name) for name in ("a.png", "b.bmp", "c.tif")]
    assert len({each.pixels for each in found}) == 1
    assert len({each.sha256 for each in found}) == 3
    white = [Pictures.new("RGB", size, "white") for size in ((6, 4), (4, 6))]
    for picture in white:
        picture.save(tmp_path / f"{picture.width}.png")
    assert facts(tmp_path, "4.png").pixels != facts(tmp_path, "6.png").pixels


def test_size_is_of_the_upright_picture(tmp_path: Path) -> None:
    exif = Pictures.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    NOISE.save(tmp_path / "a.png", exif=exif)
    NOISE.transpose(Pictures.Transpose.ROTATE_270).save(tmp_path / "b.png")
    turned = facts(tmp_path, "a.png")
    assert (turned.width, turned.height) == (40, 60)
    assert turned.pixels == facts(tmp_path, "b.png").pixels


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_other_modes_are_good(tmp_path: Path, mode: str) -> None:
    NOISE.convert(mode).save(tmp_path / "a.tif")
    assert facts(tmp_path, "a.tif").width == 60


def test_a_phone_photograph_with_a_preview_is_no_animation(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(NOISE, "MPO", save_all=True, append_images=[NOISE]))
    assert facts(tmp_path, "a.jpg").width == 60


def png_header(width: int, height: int) -> bytes:
    """The start of a PNG of any size in a few bytes."""
    data = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + data + struct.pack(">I", zlib.crc32(data))
    return b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "zero bytes": (b"", "empty picture"),
    "text": (b"<html>404 Not Found</html>", "picture cannot be decoded"),
    "truncated png": (encoded(NOISE, "PNG")[:-200], "picture cannot be decoded"),
    "truncated jpeg": (encoded(NOISE, "JPEG")[:-200], "picture cannot be decoded"),
    "truncated gif": (encoded(NOISE, "GIF")[:-200], "picture cannot be decoded"),
    "truncated webp": (encoded(NOISE, "WEBP")[:-200], "picture cannot be decoded"),
    "header only": (encoded(NOISE, "JPEG")[:400], "picture cannot be decoded"),
    "flipped bits": (encoded(NOISE, "PNG").replace(b"IDAT", b"IDAU"), "picture cannot be decoded"),
    "bomb": (png_header(50_000, 50_000), "too many pixels"),
    "over the limit": (png_header(10_001, 10_000), "too many pixels: .* 10001 x 10000, the limit is 100,000,000"),
    "animated gif": (encoded(NOISE, "GIF", save_all=True, append_images=[NOISE.rotate(9)]), "several frames"),
    "animated png": (encoded(NOISE, "PNG", save_all=True, append_images=[NOISE.rotate(9)]), "several frames"),
    "pages": (encoded(NOISE, "TIFF", save_all=True, append_images=[NOISE]), "several frames"),
    "16 bits": (encoded(Pictures.new("I;16", (4, 4), 2560), "PNG"), "more than 8 bits a channel"),
    "floats": (encoded(Pictures.new("F", (4, 4), 0.5), "TIFF"), "more than 8 bits a channel"),
    "postscript": (encoded(NOISE, "EPS"), "picture cannot be decoded"),
    "other format": (encoded(NOISE, "PCX"), "picture cannot be decoded"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "picture cannot be decoded"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_picture_is_a_problem(tmp_path: Path, case: str) -> None:
    content, reason = BAD_FILES[case]
    (tmp_path / "a.png").write_bytes(content)
    expect(check_image(tmp_path, "a.png"), reason)


def expect(found: ImageFacts | Problem, reason: str) -> Problem:
    assert isinstance(found, Problem)
    assert re.match(reason, found.reason), found
    assert found.advice
    return found


def link(folder: Path) -> str:
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    return "link.png"


def linked_folder(folder: Path) -> str:
    (folder / "link").symlink_to(folder.parent)
    return "link/secret.png"


@pytest.mark.parametrize(
    "name",
    [
        lambda _: "../secret.png",
        lambda _: "sub/../../secret.png",
        lambda folder: str(folder.parent / "secret.png"),
        lambda folder: str(folder / "good.png"),
        link,
        linked_folder,
    ],
)
def test_nothing_outside_the_folder_is_read(tmp_path: Path, name: Callable[[Path], str]) -> None:
    NOISE.save(tmp_path / "secret.png")
    (tmp_path / "root" / "sub").mkdir(parents=True)
    NOISE.save(tmp_path / "root" / "good.png")
    expect(check_image(tmp_path / "root", name(tmp_path / "root")), "picture outside its folder")


def test_a_linked_root_and_links_inside_are_fine(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    NOISE.save(tmp_path / "real" / "a.png")
    (tmp_path / "real" / "b.png").symlink_to("a.png")
    (tmp_path / "root").symlink_to("real")
    assert facts(tmp_path / "root", "b.png").width == 60


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("images/0001.jpg", "did you mean '0001.png'?"),
        ("images/001.png", "did you mean '0001.png'?"),
        ("images/HOUSE.png", "did you mean 'house.jpeg'?"),
        ("imags/0001.png", "did you mean 'images'?"),
        ("images\\0001.png", "write folders with '/'"),
        ("images/zzz", "has 3 other files"),
        ("empty/a.png", "is empty"),
    ],
)
def test_a_missing_picture_suggests_what_is_there(tmp_path: Path, name: str, near: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "images").mkdir()
    for file in ("0001.png", "0002.png", "house.jpeg"):
        (tmp_path / "images" / file).touch()
    assert near in expect(check_image(tmp_path, name), "missing picture").advice


def test_another_case_is_found_in_a_large_folder(tmp_path: Path) -> None:
    for name in [f"{letter}{index}.png" for letter in "bn" for index in range(150)] + ["House.PNG"]:
        (tmp_path / name).touch()
    assert "did you mean 'House.PNG'?" in expect(check_image(tmp_path, "house.png"), "missing picture").advice


@pytest.mark.parametrize("name", ["fifo", "folder", "x" * 300 + ".png", "loop"])
def test_odd_files_are_problems(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    expect(check_image(tmp_path, name), "no file|picture cannot be decoded|missing picture")


def test_many_pictures_in_order(tmp_path: Path) -> None:
    for index in range(20):
        Pictures.new("RGB", (index + 1, 2)).save(tmp_path / f"{index}.png")
    (tmp_path / "7.png").write_bytes(b"")
    found = check_images(tmp_path, [f"{index}.png" for index in range(21)], 30, None)
    good = [each.width for each in found.values() if isinstance(each, ImageFacts)]
    assert good == [1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15]
    assert list(found) == [f"{index}.png" for index in range(21)]


def test_a_name_that_promises_another_format_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(NOISE, "GIF"))
    problem = expect(check_image(tmp_path, "a.jpg"), r"wrong extension: a\.jpg is GIF$")
    assert problem.advice.startswith("rename it to a.gif")


@pytest.mark.parametrize(
    ("name", "form"),
    [("a.JPEG", "JPEG"), ("a.jfif", "JPEG"), ("a.jpg", "MPO"), ("a.tiff", "TIFF"), ("a.tif", "TIFF"), ("a.pgm", "PPM"),
     ("a.jp2", "JPEG2000"), ("a", "PNG"), ("a.v2", "PNG"), ("a.image", "WEBP")],
)  # fmt: skip
def test_other_names_of_a_format_and_unknown_extensions_are_good(tmp_path: Path, name: str, form: str) -> None:
    (tmp_path / name).write_bytes(encoded(NOISE, form))
    assert facts(tmp_path, name).width == 60


def smooth(size: tuple[int, int] = (320, 240)) -> Pictures.Image:
    coarse = np.random.default_rng(3).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    return Pictures.fromarray(coarse).resize(size, Pictures.Resampling.BICUBIC)


def apart(one: ImageFacts, other: ImageFacts) -> int:
    return (one.look ^ other.look).bit_count()


def test_the_look_survives_encoding_and_size_and_not_another_picture(tmp_path: Path) -> None:
    smooth().save(tmp_path / "a.png")
    smooth().save(tmp_path / "b.jpg", quality=40)
    smooth().resize((200, 150)).save(tmp_path / "c.png")
    smooth().transpose(Pictures.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "d.png")
    first, encoded_again, smaller, other = (facts(tmp_path, name) for name in ("a.png", "b.jpg", "c.png", "d.png"))
    assert apart(first, encoded_again) <= 3
    assert apart(first, smaller) <= 3
    assert apart(first, other) > 20
    assert first.pixels != encoded_again.pixels


def test_the_look_is_where_it_gets_brighter(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(0, 180, 10, dtype=np.uint8), (16, 1))
    for name, pixels in (("up", ramp), ("down", ramp[:, ::-1]), ("flat", ramp * 0 + 9)):
        Pictures.fromarray(np.ascontiguousarray(pixels)).save(tmp_path / f"{name}.png")
    assert [facts(tmp_path, f"{name}.png").look for name in ("up", "down", "flat")] == [2**64 - 1, 0, 0]


def test_alpha_is_dropped(tmp_path: Path) -> None:
    hidden = NOISE.copy()
    hidden.putalpha(0)
    hidden.save(tmp_path / "a.png")
    NOISE.save(tmp_path / "b.png")
    assert facts(tmp_path, "a.png").pixels == facts(tmp_path, "b.png").pixels


def test_a_file_larger_than_any_picture_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.png").open("wb") as stream:
        stream.truncate(1 << 30)
    expect(check_image(tmp_path, "a.png"), "too many bytes: a.png has 1,073,741,824")
