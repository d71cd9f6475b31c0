"""Every video of a data set: what is in it, that it is whole, and that its first and last frames can be decoded."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import msgspec
from tqdm import tqdm

from vlmflow.data.paths import locate
from vlmflow.data.report import shown
from vlmflow.errors import Problem
from vlmflow.files import sha256_file

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

FORMATS = {
    "mp4": "mov",
    "m4v": "mov",
    "mov": "mov",
    "webm": "matroska",
    "mkv": "matroska",
    "avi": "avi",
    "mpg": "mpeg",
    "mpeg": "mpeg",
}
"""Extension -> demuxer. FFmpeg is told which to use: it would take a playlist for a video and open what it names."""
_MAX_PIXELS = 100_000_000
OPTIONS = {"enable_drefs": "0", "protocol_whitelist": "", "max_pixels": str(_MAX_PIXELS)}
"""A QuickTime file may say that its frames are in another one: they are not looked for."""
_SLACK = 0.1, 0.01  # seconds and share, and a frame, by which a whole file may be shorter than it says: headers round
_BLOCK = 1 << 18  # bytes read at a time


class VideoFacts(msgspec.Struct, frozen=True, gc=False):
    """A good video: number of frames, duration in seconds, size in pixels seen upright, SHA-256 of the file."""

    frames: int
    duration: float
    width: int
    height: int
    sha256: bytes


class _RefusedError(Exception):
    """FFmpeg decodes it, but it is no good video; carries reason and advice."""


def check_videos(root: Path, names: Collection[str]) -> dict[str, VideoFacts | Problem]:
    """:func:`check_video` of every name, on the cores of this process or the ``threads`` of its rule, if fewer."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = int(os.environ.get("OMP_NUM_THREADS", cores))  # Snakemake sets it
    with ThreadPoolExecutor(max(1, min(cores, threads))) as pool:
        found = pool.map(lambda name: check_video(root, name), names)
        hidden = not names or not sys.stderr.isatty()
        return dict(zip(names, tqdm(found, "videos", len(names), disable=hidden), strict=True))


def check_video(root: Path, name: str) -> VideoFacts | Problem:
    """Read the video ``name`` below ``root`` to its end; no other file is opened, whatever it says."""
    try:
        path = locate(root, name, "video")
        if isinstance(path, Problem):
            return path
        return _probe(path, name)
    except _RefusedError as refused:
        reason, advice = refused.args
    except Exception as error:  # a hostile file can make a decoder raise anything
        why = getattr(error, "strerror", None) or error
        reason = f"video cannot be decoded: {shown(name)}: {shown(why, 200)}"
        advice = "it is damaged, or not what its name says; copy or export it again"
    return Problem(reason, advice, shown(root / name, 200))


def _probe(path: Path, name: str) -> VideoFacts:
    import av  # FFmpeg, 35 MB: only data sets with videos load it

    form = FORMATS.get(path.suffix.lower().removeprefix("."))
    if form is None:
        raise _RefusedError(f"unknown kind of video: {shown(name)}", f"there is {', '.join(FORMATS)}")
    with (
        path.open("rb") as file,
        av.open(file, "r", form, options=OPTIONS, buffer_size=_BLOCK, io_open=refuse) as container,
    ):
        cover = av.stream.Disposition.attached_pic
        streams = [stream for stream in container.streams.video if not stream.disposition & cover]
        if not streams:
            raise _RefusedError(f"no picture in the video: {shown(name)} has sound only", "name a video")
        stream = streams[0]
        if stream.codec_context is None:
            raise ValueError("its header is damaged, or its codec unknown")
        if stream.width * stream.height > _MAX_PIXELS:
            size = f"{stream.width} x {stream.height}"
            raise _RefusedError(f"too many pixels: {shown(name)} has {size}", "export it with smaller frames")
        stream.codec_context.options = {"max_pixels": OPTIONS["max_pixels"]}  # frames may exceed the header
        frames, duration, upright = _read(container, stream, name)
    return VideoFacts(frames, duration, *upright, bytes.fromhex(sha256_file(path)))


def refuse(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    """Takes FFmpeg's place in opening files: the video itself is open, and nothing else is to be."""
    del flags, options
    raise PermissionError(f"refers to another file: {shown(url)}")


def _read(container: InputContainer, stream: VideoStream, name: str) -> tuple[int, float, tuple[int, int]]:
    """Number of frames, duration in seconds and upright size; raises :class:`_RefusedError` when the end is missing."""
    from av import VideoFrame

    frames, end, last_start, broken = 0, 0.0, 0, False
    first = None
    for packet in container.demux():
        start = packet.dts if packet.pts is None else packet.pts
        if packet.size and start is not None and packet.time_base is not None:
            broken = broken or packet.is_corrupt
            end = max(end, float((start + (packet.duration or 0)) * packet.time_base))
        if packet.stream_index == stream.index:
            if packet.size:
                frames += not packet.is_discard
                last_start = max(last_start, start or 0)
            first = first or next(iter(packet.decode()), None)
    length, claimed = end - (container.start_time or 0) / 1e6, (container.duration or 0) / 1e6
    lasting = float(1 / (stream.average_rate or 25))
    if claimed - length > _SLACK[0] + _SLACK[1] * claimed + lasting:
        reason = f"video is cut off: {shown(name)} ends after {length:.2f} of {claimed:.2f} s"
        raise _RefusedError(reason, "copy or export it again")
    if broken:
        raise _RefusedError(f"video is cut off: {shown(name)} has incomplete frames", "copy or export it again")
    container.seek(last_start, stream=stream)
    last = next(iter(deque(container.decode(stream), maxlen=1)), None)  # there may be thousands before it
    if not isinstance(first, VideoFrame) or last is None:
        raise _RefusedError(f"no picture in the video: {shown(name)} has no frame", "copy or export it again")
    if last.duration and stream.time_base:
        lasting = float(last.duration * stream.time_base)
    duration = round((last.time or 0) - (first.time or 0) + lasting, 3)
    width, height = first.width, first.height
    return frames, duration, (height, width) if first.rotation % 180 else (width, height)
