"""Which pictures of a folder are sent, and in which form."""

from __future__ import annotations

import base64
import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image as Pictures

from vlmflow.data.generate.pictures import find_pictures
from vlmflow.endpoint.pictures import data_url
from vlmflow.errors import Problem, UserError
from vlmflow.files import sha256_file


def picture(path: Path, size: tuple[int, int] = (8, 6), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pictures.new(mode, size).save(path)
    return path


def sent(path: Path, max_side: int = 64) -> Pictures.Image:
    url = data_url(path.parent, path.name, sha256_file(path), max_side)
    assert isinstance(url, str), url
    return Pictures.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def refused(path: Path) -> str:
    problem = data_url(path.parent, path.name, sha256_file(path), 64)
    assert isinstance(problem, Problem) and problem.advice and problem.file == str(path)
    return problem.reason


# --- which -----------------------------------------------------------------------------------------------------------


def test_pictures_of_all_folders_sorted_without_hidden_and_other_files(tmp_path: Path) -> None:
    wanted = ["B.PNG", "a b.jpg", "x/1.webp", "x/y/2.gif", "\u732b.png"]
    for name in (*wanted, ".hidden.png", ".git/3.png", "x/._1.png"):
        picture(tmp_path / name)
    (tmp_path / "notes.txt").write_text("a")
    found, problems = find_pictures(tmp_path)
    assert list(found) == sorted(wanted) and not problems
    assert found["x/1.webp"] == tmp_path / "x/1.webp"


def test_the_log_tells_what_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "IMG_1.HEIC").write_bytes(b"a")
    with caplog.at_level("INFO"):
        find_pictures(tmp_path)
    assert "1 .heic" in caplog.text


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    picture(root / "a.png")
    picture(outside / "secret.png")
    (root / "link.png").symlink_to(outside / "secret.png")
    (root / "folder").symlink_to(outside)
    (root / "dangling.png").symlink_to(root / "no.png")
    (root / "inside.png").symlink_to("a.png")
    (root / "cycle").symlink_to(".")
    found, problems = find_pictures(root)
    assert list(found) == ["a.png", "inside.png"]
    assert sorted(str(problem.file).rpartition("/")[2] for problem in problems) == [
        "dangling.png",
        "folder",
        "link.png",
    ]
    assert not any("secret.png" in str(place) for place in found.values())


def test_the_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    picture(tmp_path / "real" / "a.png")
    (tmp_path / "link").symlink_to("real")
    assert list(find_pictures(tmp_path / "link")[0]) == ["a.png"]


@pytest.mark.parametrize("name", [b"\xff.png", b"a\nb.png"])
def test_names_that_annotations_cannot_hold_are_problems(tmp_path: Path, name: bytes) -> None:
    picture(tmp_path / "a.png")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(b"a")
    found, problems = find_pictures(tmp_path)
    assert list(found) == ["a.png"]
    assert [problem.reason.split(":")[0] for problem in problems] == ["broken name"]
    assert str(problems[0]).isprintable() or "\n    -> " in str(problems[0])
    str(problems[0]).encode()


def test_empty_files_and_folders_called_like_pictures(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "empty.png").touch()
    picture(tmp_path / "folder.png" / "b.png")
    found, problems = find_pictures(tmp_path)
    assert list(found) == ["a.png", "folder.png/b.png"]
    assert [problem.reason.split(":")[0] for problem in problems] == ["empty picture"]


@pytest.mark.parametrize("exists", [True, False])
def test_no_pictures(tmp_path: Path, exists: bool) -> None:
    (tmp_path / "text.txt").touch()
    with pytest.raises(UserError, match="no pictures" if exists else "no such folder"):
        find_pictures(tmp_path if exists else tmp_path / "no")


# --- in which form ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "expected"), [((40, 20), (40, 20)), ((640, 320), (64, 32)), ((320, 640), (32, 64)), ((5000, 2), (64, 1))]
)
def test_larger_pictures_are_made_smaller_and_no_others_larger(
    tmp_path: Path, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    for suffix in (".png", ".jpg"):
        assert sent(picture(tmp_path / f"a{suffix}", size)).size == expected


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "1", "LA", "CMYK"])
def test_every_mode_is_sent_as_rgb(tmp_path: Path, mode: str) -> None:
    image = sent(picture(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"), (100, 50), mode))
    assert (image.mode, image.format, image.size) == ("RGB", "JPEG", (64, 32))


def test_pictures_are_upright_and_without_metadata(tmp_path: Path) -> None:
    path = tmp_path / "phone.jpg"
    original = Pictures.new("RGB", (400, 200), "blue")
    original.paste("red", (0, 0, 200, 200))
    exif = Pictures.Exif()
    exif[0x0112], exif[0x010E] = 6, "SECRET PLACE"
    original.save(path, exif=exif, comment=b"SECRET COMMENT", icc_profile=b"SECRET PROFILE")
    assert b"SECRET" in path.read_bytes()
    image = sent(path, 100)
    assert image.size == (50, 100)
    upper, lower = image.getpixel((25, 10)), image.getpixel((25, 90))
    assert isinstance(upper, tuple) and isinstance(lower, tuple)
    assert upper[0] > 200 > 50 > upper[2] and lower[2] > 200 > 50 > lower[0]
    url = data_url(path.parent, path.name, sha256_file(path), 100)
    assert isinstance(url, str) and b"SECRET" not in base64.b64decode(url.partition(",")[2])
    assert not image.getexif() and "comment" not in image.info and "icc_profile" not in image.info


def bomb(side: int) -> bytes:
    """A PNG that claims ``side`` pixels a side, in a few bytes."""
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ]
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def animation() -> bytes:
    frames = [Pictures.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    stream = io.BytesIO()
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
    return stream.getvalue()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("write", "kind"),
    [
        (lambda path: path.write_bytes(bomb(10_001)), "too many pixels"),
        (lambda path: path.write_bytes(bomb(50_000)), "too many pixels"),
        (lambda path: path.write_bytes(b"no picture"), "picture cannot be decoded"),
        (lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n"), "picture cannot be decoded"),
        (lambda path: path.write_bytes(bomb(100)), "picture cannot be decoded"),
        (lambda path: Pictures.new("I;16", (4, 4)).save(path, "PNG"), "more than 8 bits a channel"),
        (lambda path: path.write_bytes(animation()), "several frames"),
        (lambda path: Pictures.new("RGB", (4, 4)).save(path, "JPEG"), "wrong extension"),
    ],
)
def test_what_the_data_stage_would_refuse_is_not_sent(
    tmp_path: Path, write: Callable[[Path], object], kind: str
) -> None:
    path = tmp_path / "a.png"
    write(path)
    assert refused(path).split(":")[0] == kind


def test_a_picture_that_changed_meanwhile_is_not_sent(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    problem = data_url(tmp_path, "a.png", "0" * 64, 64)
    assert isinstance(problem, Problem) and problem.reason.startswith("picture changed:") and path.exists()
