"""Every picture of a data set, decoded once to its last byte."""

from __future__ import annotations

import bisect
import difflib
import functools
import hashlib
import os
import sys
import warnings
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image as Pictures
from PIL import ImageOps
from tqdm import tqdm

from vlmflow.data.report import shown
from vlmflow.errors import Problem
from vlmflow.files import sha256_file

MAX_PIXELS = 100_000_000
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
"""Raster formats only: Pillow would hand PostScript to an interpreter."""
_NEIGHBOURS = 100  # names on either side, in alphabetical order, that a missing name is compared with


@dataclass(frozen=True)
class ImageFacts:
    """A good picture: name as given, size in pixels seen upright, SHA-256 of the file and of its upright RGB pixels."""

    path: str
    width: int
    height: int
    sha256: str
    pixels: str


def check_images(root: Path, names: Collection[str], max_pixels: int) -> dict[str, ImageFacts | Problem]:
    """:func:`check_image` of every name, on the cores of this process or the ``threads`` of its rule, if fewer."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = int(os.environ.get("OMP_NUM_THREADS", cores))  # Snakemake sets it
    with warnings.catch_warnings(), ThreadPoolExecutor(max(1, min(cores, threads))) as pool:
        warnings.simplefilter("ignore")  # of Pillow on odd metadata; what matters here is a problem, not a warning
        results = pool.map(lambda name: check_image(root, name, max_pixels), names)
        bar = tqdm(results, "pictures", len(names), disable=not sys.stderr.isatty())
        return dict(zip(names, bar, strict=True))


def check_image(root: Path, name: str, max_pixels: int = MAX_PIXELS) -> ImageFacts | Problem:
    """Decode the picture ``name`` below ``root``; nothing outside ``root`` is opened."""
    path = root / name
    problem = functools.partial(Problem, file=shown(path, 200))
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts:
        return problem(f"picture outside the image folder: {shown(name)}", "name it relative to `images`, without '..'")
    try:
        if not path.exists():
            return problem(f"missing picture: {shown(name)}", suggestion(path, root))
        if not path.resolve().is_relative_to(root.resolve()):
            advice = "copy it into the image folder, or let `images` name the folder that it is in"
            return problem(f"picture outside the image folder: {shown(name)} is a link out of it", advice)
        if not path.is_file():
            return problem(f"no file: {shown(name)} is a folder or device", "name a picture")
        if not path.stat().st_size:
            return problem(f"empty picture: {shown(name)} has no bytes", "copy it again")
        return _decode(path, name, max_pixels, problem)
    except Exception as error:  # a hostile file can make a decoder raise anything
        reason = f"picture cannot be decoded: {shown(name)}: {shown(error, 200)}"
        return problem(reason, f"it is damaged, or not one of {', '.join(_FORMATS)}; copy or export it again")


def _decode(path: Path, name: str, max_pixels: int, problem: functools.partial[Problem]) -> ImageFacts | Problem:
    with Pictures.open(path, formats=_FORMATS) as picture:
        width, height = picture.size
        if width * height > max_pixels:
            reason = f"too many pixels: {shown(name)} has {width} x {height}, the limit is {max_pixels:,}"
            return problem(reason, "make it smaller, or raise max_pixels if you trust it")
        # A phone's JPEG with a preview inside (MPO) has two frames, too; the first is the photograph.
        if getattr(picture, "n_frames", 1) > 1 and picture.format != "MPO":
            return problem(f"several frames: {shown(name)} is animated or has pages", "save one frame as PNG or JPEG")
        if picture.mode[0] in "IF":
            reason = f"more than 8 bits a channel: {shown(name)} (mode {picture.mode})"
            return problem(reason, "scale its values to 0..255 and save it with 8 bits, else most would become white")
        upright = ImageOps.exif_transpose(picture).convert("RGB")
    digest = hashlib.sha256(f"{upright.width}x{upright.height}:".encode())
    digest.update(upright.tobytes())
    return ImageFacts(name, upright.width, upright.height, sha256_file(path), digest.hexdigest())


def suggestion(path: Path, root: Path) -> str:
    """What a missing file could have been: other case, other suffix, a similar name in its folder."""
    folder = path.parent
    if "\\" in path.name:
        return "write folders with '/', not '\\'"
    while not folder.is_dir() and folder != root and folder != folder.parent:
        path, folder = folder, folder.parent
    if not folder.is_dir():
        return f"there is no folder {shown(folder)}"
    names = _listing(folder, folder.stat().st_mtime_ns)
    here = bisect.bisect(names, path.name.lower(), key=str.lower)
    close = names[max(0, here - _NEIGHBOURS) : here + _NEIGHBOURS]
    stem = [other for other in close if Path(other).stem.lower() == path.stem.lower()]
    near = stem or difflib.get_close_matches(path.name, close, n=1)
    if near:
        return f"did you mean '{shown(near[0])}'?"
    return (
        f"the folder {shown(folder)} has {len(names)} other files" if names else f"the folder {shown(folder)} is empty"
    )


@functools.lru_cache(maxsize=64)
def _listing(folder: Path, _changed: int) -> list[str]:
    """Names in a folder, sorted whatever their case, read once as long as it does not change."""
    return sorted((entry.name for entry in folder.iterdir()), key=str.lower)
