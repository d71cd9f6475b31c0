"""A user's picture and video files as pictures that a model sees; no other file is opened, whatever they say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import av
from PIL import Image, ImageOps, UnidentifiedImageError

from vlmflow.data.images import FORMATS as PICTURES
from vlmflow.data.images import MAX_PIXELS
from vlmflow.data.report import shown
from vlmflow.data.videos import FORMATS as VIDEOS
from vlmflow.data.videos import OPTIONS as VIDEO_OPTIONS
from vlmflow.data.videos import check_video, refuse
from vlmflow.errors import Problem, UserError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream


def open_picture(path: Path) -> Image.Image:
    """A picture as training sees it: upright as its EXIF orientation says, then RGB (the colours under transparency).

    Raises :class:`UserError` for what is missing, no picture, too large, animated or of more than 8 bits a channel.
    """
    _check_file(path, "picture")
    try:
        with Image.open(path, formats=PICTURES) as picture:
            _check_picture(picture, path)
            picture.load()
            return ImageOps.exif_transpose(picture).convert("RGB")
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f"too many pixels: {shown(error, 200)}", "make it smaller", file=path) from error
    except Exception as error:  # a hostile file can make a decoder raise anything
        why = "" if isinstance(error, UnidentifiedImageError) else f": {shown(error, 200)}"
        advice = f"it is damaged, or not one of {', '.join(PICTURES)}"
        raise UserError(f"not a picture that can be decoded{why}", advice, file=path) from error


def _check_picture(picture: Image.Image, path: Path) -> None:
    width, height = picture.size
    if width * height > MAX_PIXELS:
        reason = f"too many pixels: {width} x {height}, the limit is {MAX_PIXELS:,}"
        raise UserError(reason, "make it smaller", file=path)
    if getattr(picture, "n_frames", 1) > 1 and picture.format != "MPO":  # a phone's JPEG with a preview inside
        raise UserError("animated, or of several pages", "save one frame as PNG or JPEG", file=path)
    if picture.mode[0] in "IF":
        raise UserError(f"more than 8 bits a channel (mode {picture.mode})", "save it with 8 bits", file=path)


def video_frames(path: Path, count: int) -> list[Image.Image]:
    """``count`` pictures, upright, RGB, from the middles of as many equal parts of a video; all if it has no more.

    The places are those of InternVL's demo (Chen et al. 2024). Raises :class:`UserError` for what is no whole video.
    """
    _check_file(path, "video")
    found = check_video(path.resolve().parent, path.resolve().name)
    if isinstance(found, Problem):
        raise UserError(found.reason, found.advice, file=path)
    count = min(count, found.frames)
    moments = [found.duration * (part + 0.5) / count for part in range(count)]  # seconds after the first frame
    try:
        with (
            path.open("rb") as file,
            av.open(
                file, "r", VIDEOS[path.suffix.lower().removeprefix(".")], options=VIDEO_OPTIONS, io_open=refuse
            ) as container,
        ):
            cover = av.stream.Disposition.attached_pic
            stream = next(each for each in container.streams.video if not each.disposition & cover)
            stream.thread_type = "AUTO"
            return list(_frames_at(container, stream, moments))
    except Exception as error:
        raise UserError(f"video cannot be decoded: {shown(error, 200)}", "export it again", file=path) from error


def _frames_at(container: InputContainer, stream: VideoStream, moments: list[float]) -> Iterator[Image.Image]:
    """The picture that is on the screen at each moment; between distant ones only what a jump makes necessary."""
    first = float((stream.start_time or 0) * (stream.time_base or 0))
    for moment in moments:
        container.seek(int((first + moment) / float(stream.time_base or 1)), stream=stream)
        chosen = None
        for frame in container.decode(stream):
            if chosen is not None and (frame.time or 0.0) > first + moment:
                break
            chosen = frame
        if chosen is None:
            raise ValueError(f"no frame at {moment:.2f} s")
        yield chosen.to_image().convert("RGB").rotate(chosen.rotation, expand=True)


def _check_file(path: Path, what: str) -> None:
    if not path.exists():
        raise UserError(f"no such {what}", "check the name", file=path)
    if not path.is_file():
        raise UserError("a folder or device, not a file", f"name a {what}", file=path)
