"""Videos: what is found in good ones, and that a bad or hostile one is named and opens nothing else."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from vlmflow.data import videos
from vlmflow.data.videos import VideoFacts, check_video, check_videos
from vlmflow.errors import Problem
from vlmflow.files import sha256_file

RATE, FRAMES, SIZE = 10, 20, (64, 48)
CODECS = {".mp4": "libx264", ".m4v": "libx264", ".mov": "mpeg4", ".webm": "libvpx", ".mkv": "libx264", ".avi": "mpeg4"}


def write(path: Path, *, picture: bool = True, sound: bool = False, **options: str) -> Path:
    """A video of two seconds of noise, which compresses badly, so that a cut file lacks frames."""
    noise = np.random.default_rng(0)
    with av.open(str(path), "w", options=options) as container:
        if picture:
            video = container.add_stream(CODECS[path.suffix], rate=RATE)
            video.width, video.height = SIZE
            video.pix_fmt = "yuv420p"
        if sound:
            audio = container.add_stream("libopus", rate=48000)
        for _ in range(FRAMES if picture else 0):
            pixels = noise.integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        for start in range(0, 96_000 if sound else 0, 960):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1920), np.int16), format="s16", layout="stereo")
            frame.sample_rate, frame.pts, frame.time_base = 48000, start, Fraction(1, 48000)
            container.mux(audio.encode(frame))
        for stream in container.streams:
            container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("suffix", "sound"), [*((suffix, False) for suffix in CODECS), (".mp4", True), (".webm", True), (".mkv", True)]
)
def test_what_is_in_a_good_video(tmp_path: Path, suffix: str, sound: bool) -> None:
    path = write(tmp_path / f"a{suffix}", sound=sound)
    digest = bytes.fromhex(sha256_file(path))
    assert check_video(tmp_path, path.name) == VideoFacts(FRAMES, FRAMES / RATE, *SIZE, digest)


def test_capitals_and_folders_in_names(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    write(tmp_path / "a.mp4").rename(tmp_path / "b" / "A.MP4")
    assert isinstance(check_video(tmp_path, "b/A.MP4"), VideoFacts)


def test_size_is_that_of_the_upright_video(tmp_path: Path) -> None:
    content = bytearray(write(tmp_path / "a.mp4").read_bytes())
    matrix = (
        content.index(b"tkhd") + 4 + 40
    )  # version and flags, times, track, duration, layer, group, volume: 40 bytes
    content[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(content)
    found = check_video(tmp_path, "turned.mp4")
    assert isinstance(found, VideoFacts)
    assert (found.width, found.height) == (SIZE[1], SIZE[0])


def test_a_video_that_was_trimmed_is_not_cut_off(tmp_path: Path) -> None:
    content = bytearray(write(tmp_path / "a.mp4").read_bytes())
    entry = content.index(b"elst") + 4 + 8  # version and flags, number of entries
    _, start = struct.unpack_from(">Ii", content, entry)
    struct.pack_into(">Ii", content, entry, 1000, start + 5 * 1024)  # a second from the sixth frame on
    (tmp_path / "trimmed.mp4").write_bytes(content)
    found = check_video(tmp_path, "trimmed.mp4")
    assert isinstance(found, VideoFacts)
    assert (found.frames, found.duration) == (RATE, 1.0)


def test_many_videos_and_none(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4")
    found = check_videos(tmp_path, ["a.mp4", "b.mp4"])
    assert isinstance(found["a.mp4"], VideoFacts)
    assert isinstance(found["b.mp4"], Problem)
    assert check_videos(tmp_path, []) == {}


def problem(root: Path, name: str) -> Problem:
    found = check_video(root, name)
    assert isinstance(found, Problem)
    assert found.advice
    assert str(found.file) == str(root / name)
    return found


@pytest.mark.parametrize("suffix", [*CODECS, "faststart.mp4"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.85])
def test_a_video_that_is_cut_off(tmp_path: Path, suffix: str, part: float) -> None:
    options = {"movflags": "faststart"} if suffix == "faststart.mp4" else {}
    path = write(tmp_path / f"a{suffix}", **options)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    reason = problem(tmp_path, path.name).reason
    assert reason.startswith(("video is cut off: ", "video cannot be decoded: "))
    assert "cut off" in reason or suffix in (".mp4", ".m4v", ".mov")  # these keep their table of contents at the end


def test_a_frame_that_is_damaged(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4")
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + 4
    content[start : start + 2000] = bytes(2000)
    path.write_bytes(content)
    assert problem(tmp_path, "a.mp4").reason.startswith("video cannot be decoded: a.mp4: ")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("text.mp4", b"This is no video.\n" * 100, "video cannot be decoded: text.mp4: Invalid data"),
        ("text.webm", b"This is no video.\n" * 100, "video cannot be decoded: text.webm: "),
        ("text.avi", b"This is no video.\n" * 100, "video cannot be decoded: text.avi: "),
        ("text.mpg", b"This is no video.\n" * 100, "video cannot be decoded: text.mpg: "),
        ("zeros.mp4", bytes(5000), "video cannot be decoded: zeros.mp4: "),
        ("empty.mp4", b"", "empty video: empty.mp4 has no bytes"),
        ("song.mp3", b"ID3", "unknown kind of video: song.mp3"),
        ("noname", b"x", "unknown kind of video: noname"),
    ],
)
def test_what_is_no_video(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert problem(tmp_path, name).reason.startswith(reason)


def test_another_container_than_the_name_says(tmp_path: Path) -> None:
    write(tmp_path / "a.webm").rename(tmp_path / "a.mp4")
    assert problem(tmp_path, "a.mp4").reason.startswith("video cannot be decoded: a.mp4: ")


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_sound_alone(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a{suffix}", picture=False, sound=True)
    assert problem(tmp_path, path.name).reason == f"no picture in the video: {path.name} has sound only"


def test_frames_over_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.mp4")
    monkeypatch.setattr(videos, "_MAX_PIXELS", SIZE[0] * SIZE[1] - 1)
    assert problem(tmp_path, "a.mp4").reason == "too many pixels: a.mp4 has 64 x 48"


def test_a_missing_video_and_its_neighbour(tmp_path: Path) -> None:
    write(tmp_path / "cat.mp4")
    found = problem(tmp_path, "cat.webm")
    assert (found.reason, found.advice) == ("missing video: cat.webm", "did you mean 'cat.mp4'?")


def test_nothing_outside_the_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    outside = write(tmp_path / "out.mp4")
    (tmp_path / "in" / "link.mp4").symlink_to(outside)
    with opened(outside) as names:
        reasons = [check_video(tmp_path / "in", name) for name in ("link.mp4", "../out.mp4", str(outside))]
    assert all(isinstance(found, Problem) and "outside its folder" in found.reason for found in reasons)
    assert not names


# --- files that name other files -------------------------------------------------------------------------------------


@contextmanager
def opened(path: Path) -> Iterator[list[bytes]]:
    """A list that is not empty when anything opened the file inside the block (Linux: inotify)."""
    if sys.platform != "linux":
        pytest.skip("watches files as Linux does")
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK)
    assert libc.inotify_add_watch(watch, os.fsencode(path), 0x20) > 0  # IN_OPEN
    seen: list[bytes] = []
    try:
        yield seen
        with suppress(BlockingIOError):
            seen.append(os.read(watch, 1 << 16))
    finally:
        os.close(watch)


def playlist(target: Path) -> bytes:
    lines = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{}\n#EXT-X-ENDLIST\n"
    return lines.format(target.name).encode()


def concat(target: Path) -> bytes:
    return f"ffconcat version 1.0\nfile {target.name}\n".encode()


def dash(target: Path) -> bytes:
    return f"""<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"
        mediaPresentationDuration="PT2S"><Period><AdaptationSet mimeType="video/webm"><Representation id="1"
        bandwidth="1"><BaseURL>{target.name}</BaseURL></Representation></AdaptationSet></Period></MPD>""".encode()


def plainly(path: Path, **options: str) -> None:
    """Open it as FFmpeg does if nobody minds."""
    try:
        with av.open(str(path), options=options) as container:
            next(container.decode(video=0))
    except (av.FFmpegError, IndexError, StopIteration):
        pass


@pytest.mark.parametrize("script", [playlist, concat])
@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".avi", ".mpg"])
def test_a_script_that_names_another_video_opens_nothing(
    tmp_path: Path, script: Callable[[Path], bytes], suffix: str
) -> None:
    target = write(tmp_path / "target.mp4")
    bait = tmp_path / f"bait{suffix}"
    bait.write_bytes(script(target))
    if script is concat:
        with opened(target) as names:
            plainly(bait)
        assert names, "the bait does not work: FFmpeg left to itself does not follow it"
    with opened(target) as names:
        assert problem(tmp_path, bait.name).reason.startswith(f"video cannot be decoded: {bait.name}: ")
    assert not names


def alias(target: Path) -> bytes:
    """A data reference of QuickTime to a file beside the one it is in (Macintosh alias, FFmpeg's mov_read_dref)."""
    where = f"/volume/{target.name}".encode()
    where += bytes(len(where) % 2)
    record = bytes(10) + bytes(28) + bytes(12) + bytes(64) + bytes(16) + struct.pack(">hh", 1, 1) + bytes(16)
    record += struct.pack(">hH", 2, len(where)) + where + struct.pack(">hH", -1, 0)
    return struct.pack(">I4sI", 12 + len(record), b"alis", 0) + record


def referring(video: bytes, reference: bytes) -> bytes:
    """The video with its own data reference replaced, and the sizes of the boxes around it corrected."""
    place = video.index(b"dref") + 12
    size = struct.unpack_from(">I", video, place)[0]
    content = bytearray(video[:place] + reference + video[place + size :])
    for box in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        at = content.index(box) - 4
        struct.pack_into(">I", content, at, struct.unpack_from(">I", content, at)[0] + len(reference) - size)
    return bytes(content)


def test_frames_that_lie_in_another_file_are_not_looked_for(tmp_path: Path) -> None:
    target = write(tmp_path / "target.mov")
    bait = tmp_path / "bait.mov"
    bait.write_bytes(referring(target.read_bytes().replace(b"mdat", b"free", 1), alias(target)))
    with opened(target) as names:
        plainly(bait, enable_drefs="1")
    assert names, "the bait does not work: FFmpeg told to follow it does not"
    with opened(target) as names:
        check_video(tmp_path, "bait.mov")
    assert not names


def test_a_demuxer_that_wants_another_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second wall: were references switched on, opening would still fail."""
    target = write(tmp_path / "target.mov")
    (tmp_path / "bait.mov").write_bytes(referring(target.read_bytes(), alias(target)))
    asked: list[str] = []

    def refuse(url: str, *_: object) -> None:
        asked.append(Path(url).name)
        raise PermissionError(url)

    monkeypatch.setattr(videos, "OPTIONS", {**videos.OPTIONS, "enable_drefs": "1"})
    monkeypatch.setattr("vlmflow.data.videos.refuse", refuse)
    with opened(target) as names:
        check_video(tmp_path, "bait.mov")
    assert asked == ["target.mov"]
    assert not names
