"""Every picture of a data set, decoded once to its last byte."""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import sys
import warnings
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path, PurePosixPath

import numpy as np
import xxhash
from PIL import Image as Pictures
from PIL import ImageOps, UnidentifiedImageError
from tqdm import tqdm

from vlmflow.data.cache import Known, PictureCache
from vlmflow.data.paths import locate
from vlmflow.data.pictures import ImageFacts
from vlmflow.data.report import shown
from vlmflow.errors import Problem

MAX_PIXELS = 100_000_000
CHECKS = 1
"""Version of what is checked and recorded here: raise it with every change of either, and nothing cached counts."""
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
"""Raster formats only: Pillow would hand PostScript to an interpreter."""
_VARIANTS = {"MPO": "JPEG", "DIB": "BMP"}
_SMALL = 1 << 16  # bytes of pixels that are hashed as they are
_BATCH = 256  # pictures between two commits of the cache

Check = ImageFacts | Problem


def check_images(root: Path, names: Collection[str], max_pixels: int, cache: Path | None) -> dict[str, Check]:
    """:func:`check_image` of every name, on the cores of this process or the ``threads`` of its rule, if fewer.

    With a file ``cache``, a picture that was good before and has the same path, size and modification time is not read
    again: content that changes and keeps both goes unseen.
    """
    with PictureCache(cache, CHECKS) as known:
        return look_at(root, names, max_pixels, known)


def look_at(root: Path, names: Collection[str], max_pixels: int, known: PictureCache) -> dict[str, Check]:
    """:func:`check_images` with a cache that is open already, for names that come in batches."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = int(os.environ.get("OMP_NUM_THREADS", cores))  # Snakemake sets it
    results: dict[str, Check] = {}
    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor(max(1, min(cores, threads))) as pool,
        tqdm(desc="pictures", total=len(names), leave=False, disable=not sys.stderr.isatty()) as bar,
    ):
        warnings.simplefilter("ignore")  # of Pillow on odd metadata; what matters here is a problem, not a warning
        folder = str(root.absolute())

        def check(name: str, before: Known | None) -> tuple[Check, Known | None]:
            return _check_unless_known(root, name, max_pixels, before)

        def collect(batch: list[str], running: Iterator[tuple[Check, Known | None]]) -> None:
            news: dict[str, Known] = {}
            for name, (found, new) in zip(batch, running, strict=True):
                results[name] = found
                if new:
                    news[f"{folder}/{name}"] = new
                bar.update()
            known.write(news)

        waiting: tuple[list[str], Iterator[tuple[Check, Known | None]]] | None = None
        for batch in _batches(names):
            before = known.read([f"{folder}/{name}" for name in batch])
            running = pool.map(check, batch, [before.get(f"{folder}/{name}") for name in batch])
            if waiting:  # collected while the next batch runs already
                collect(*waiting)
            waiting = batch, running
        if waiting:
            collect(*waiting)
    return results


def check_image(root: Path, name: str, max_pixels: int = MAX_PIXELS) -> Check:
    """Decode the picture ``name`` below ``root``; nothing outside ``root`` is opened.

    Pixels are taken as training takes them: turned upright as EXIF says, then as RGB. Of a picture with transparency
    that is the colour stored under it, colour profiles are not applied.
    """
    return _check_unless_known(root, name, max_pixels, None)[0]


def _check_unless_known(root: Path, name: str, max_pixels: int, known: Known | None) -> tuple[Check, Known | None]:
    """What is found, and what is new to the cache."""
    problem = functools.partial(Problem, file=shown(root / name, 200))
    try:
        path = locate(root, name, "picture")
        if isinstance(path, Problem):
            return path, None
        state = path.stat()  # before the content is read: what changes in between is read again next time
        unchanged = known is not None and (known.size, known.mtime_ns) == (state.st_size, state.st_mtime_ns)
        if known and unchanged and known.facts.width * known.facts.height <= max_pixels:
            return known.facts, None
        if state.st_size > 8 * max_pixels + (64 << 20):  # uncompressed, with 16 bits a channel and much metadata
            reason = f"too many bytes: {shown(name)} has {state.st_size:,}, more than a picture within the limits"
            return problem(reason, "save it as a compressed picture"), None
        found = _decode(path.read_bytes(), name, max_pixels, problem)
        return found, Known(state.st_size, state.st_mtime_ns, found) if isinstance(found, ImageFacts) else None
    except Exception as error:  # a hostile file can make a decoder raise anything
        unknown = isinstance(error, UnidentifiedImageError)  # its message names an object in memory
        reason = f"picture cannot be decoded: {shown(name)}" + ("" if unknown else f": {shown(error, 200)}")
        return problem(reason, f"it is damaged, or not one of {', '.join(FORMATS)}; copy or export it again"), None


def _decode(content: bytes, name: str, max_pixels: int, problem: functools.partial[Problem]) -> Check:
    too_many = "make it smaller, or raise max_pixels if you trust it"
    try:
        picture = Pictures.open(BytesIO(content), formats=FORMATS)
    except Pictures.DecompressionBombError as error:  # Pillow's own limit, which training meets too
        return problem(f"too many pixels: {shown(name)}: {error}", "make it smaller")
    with picture:
        width, height = picture.size
        if width * height > max_pixels:
            reason = f"too many pixels: {shown(name)} has {width} x {height}, the limit is {max_pixels:,}"
            return problem(reason, too_many)
        # A phone's JPEG with a preview inside (MPO) has two frames, too; the first is the photograph.
        if getattr(picture, "n_frames", 1) > 1 and picture.format != "MPO":
            return problem(f"several frames: {shown(name)} is animated or has pages", "save one frame as PNG or JPEG")
        if picture.mode[0] in "IF":
            reason = f"more than 8 bits a channel: {shown(name)} (mode {picture.mode})"
            return problem(reason, "scale its values to 0..255 and save it with 8 bits, else most would become white")
        form = _VARIANTS.get(str(picture.format), str(picture.format))
        picture.load()
        ImageOps.exif_transpose(picture, in_place=True)
        upright = picture if picture.mode == "RGB" else picture.convert("RGB")
        if _promised(name) not in (None, form):
            advice = f"rename it to {_with_suffix(name, form)}: other programs choose the decoder by the name"
            return problem(f"wrong extension: {shown(name)} is {form}", advice)
        pixels, look = _content(upright), _look(upright)
    return ImageFacts(upright.width, upright.height, hashlib.sha256(content).digest(), pixels, look)


def _content(picture: Pictures.Image) -> bytes:
    """SHA-256 of size and pixels. A large picture's pixels are condensed before: SHA-256 would take half the time of
    decoding them, and equal pictures are to be found here, not forged ones."""
    pixels = picture.tobytes()
    condensed = pixels if len(pixels) <= _SMALL else xxhash.xxh3_128_digest(pixels)
    return hashlib.sha256(f"{picture.width}x{picture.height}:".encode() + condensed).digest()


def _look(picture: Pictures.Image) -> int:
    """Difference hash of an RGB picture: whether it gets brighter to the right, at 8 x 8 places, row by row."""
    # 16 x 16 of its pixels for each place tell as much as all of them, at a tenth of the time.
    some = picture.resize((min(picture.width, 144), min(picture.height, 128)), Pictures.Resampling.NEAREST)
    small = some.resize((9, 8), Pictures.Resampling.BILINEAR)
    grey = np.frombuffer(small.convert("L").tobytes(), np.uint8).reshape(8, 9)
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes(), "big")


def _promised(name: str) -> str | None:
    """The format that an extension stands for, None for unknown extensions and none."""
    form = _extensions().get(PurePosixPath(name).suffix.lower())
    return _VARIANTS.get(form, form) if form else None


def _with_suffix(name: str, form: str) -> str:
    suffix = {"JPEG": ".jpg", "TIFF": ".tif", "JPEG2000": ".jp2"}.get(form, f".{form.lower()}")
    return shown(PurePosixPath(name).with_suffix(suffix).name)


@functools.cache
def _extensions() -> dict[str, str]:
    return Pictures.registered_extensions()


def _batches(names: Collection[str]) -> Iterator[list[str]]:
    rest = iter(names)
    while batch := list(itertools.islice(rest, _BATCH)):
        yield batch
