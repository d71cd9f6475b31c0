"""Pictures and videos that users name: what a model sees of good ones, and what is said of bad ones."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image as Pictures
from PIL import PngImagePlugin

from vlmflow.chat.media import open_picture, video_frames
from vlmflow.errors import UserError

LEVELS = range(0, 250, 10)  # brightness of each frame


def test_a_picture_is_upright_and_rgb(tmp_path: Path) -> None:
    exif = Pictures.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Pictures.new("RGB", (30, 20)).save(tmp_path / "phone.jpg", exif=exif)
    assert open_picture(tmp_path / "phone.jpg").size == (20, 30)
    Pictures.new("RGBA", (4, 4), (200, 100, 50, 0)).save(tmp_path / "clear.png")
    assert open_picture(tmp_path / "clear.png").getpixel((0, 0)) == (200, 100, 50)
    Pictures.new("L", (4, 4), 7).save(tmp_path / "really-png.jpg", "PNG")
    assert open_picture(tmp_path / "really-png.jpg").getpixel((0, 0)) == (7, 7, 7)


def bad_picture(kind: str, folder: Path) -> Path:
    path = folder / f"{kind}.png"
    if kind == "text":
        path.write_text("hello")
    elif kind == "folder":
        path.mkdir()
    elif kind == "cut":
        Pictures.effect_noise((64, 64), 50).save(path)
        path.write_bytes(path.read_bytes()[:500])
    elif kind == "large":
        Pictures.new("1", (10_001, 10_000)).save(path)
    elif kind == "bomb":
        Pictures.new("1", (20_000, 10_000)).save(path)
    elif kind == "deep":
        Pictures.new("I;16", (4, 4)).save(path)
    elif kind == "animated":
        frames = [Pictures.new("L", (4, 4), level) for level in (0, 100)]
        frames[0].save(path, save_all=True, append_images=frames[1:])
    elif kind == "chunk":
        extra = PngImagePlugin.PngInfo()
        extra.add_text("a", "b" * 3_000_000, zip=True)
        Pictures.new("L", (4, 4)).save(path, pnginfo=extra)
    return path


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("none", "no such picture"), ("text", "not a picture"), ("folder", "a folder or device"),
        ("cut", "not a picture that can be decoded"), ("large", "too many pixels: 10001 x 10000"),
        ("bomb", "too many pixels"), ("deep", "more than 8 bits"), ("animated", "animated"), ("chunk", "not a picture"),
    ],
)  # fmt: skip
def test_a_bad_picture_is_named(kind: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        open_picture(bad_picture(kind, tmp_path))
    assert f"{kind}.png" in str(caught.value) and "->" in str(caught.value)


@pytest.fixture(scope="module", params=[".mp4", ".webm"])
def video(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """25 grey frames, each a little brighter, in groups of ten."""
    path = tmp_path_factory.mktemp("video") / f"grey{request.param}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264" if path.suffix == ".mp4" else "libvpx", rate=10, options={"g": "10"})
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        for level in LEVELS:
            pixels = np.full((32, 64, 3), level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("count", [1, 4, 8, 25, 99])
def test_frames_are_from_the_middles_of_equal_parts(video: Path, count: int) -> None:
    frames = video_frames(video, count)
    expected = [LEVELS[int(len(LEVELS) * (part + 0.5) / min(count, 25))] for part in range(min(count, 25))]
    assert [frame.size for frame in frames] == [(64, 32)] * len(expected)
    assert [frame.getpixel((30, 15))[0] for frame in frames] == pytest.approx(expected, abs=5)  # type: ignore[index]


def test_a_bad_video_is_named(tmp_path: Path, video: Path) -> None:
    (tmp_path / "notes.mp4").write_text("hello")
    (tmp_path / "cut.mp4").write_bytes(video.read_bytes()[:700])
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n/etc/passwd\n")
    for name in ("none.mp4", "notes.mp4", "cut.mp4", "list.m3u8"):
        with pytest.raises(UserError, match=name):
            video_frames(tmp_path / name, 4)
