"""A picture as an endpoint takes it."""

from __future__ import annotations

import base64
import hashlib
import io
import threading
from pathlib import Path

from PIL import Image as Pictures
from PIL import ImageOps

from vlmflow.data.images import check_image
from vlmflow.data.report import shown
from vlmflow.errors import Problem

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
"""As in data/images.py, which has looked at every picture before it is opened here."""
_DECODING = threading.BoundedSemaphore(2)  # pictures in memory at full size, however many requests there are


def data_url(root: Path, name: str, sha256: str, max_side: int) -> str | Problem:
    """A picture as a base64 data URL: an upright RGB JPEG of at most ``max_side`` pixels a side, without metadata.

    What the data stage would refuse later is a problem here, before anything is paid for it; so is a file that does not
    have the hash ``sha256`` any more.
    """
    path = root / name

    def problem(kind: str, what: str, advice: str) -> Problem:
        return Problem(f"{kind}: {what}", advice, shown(path, 200))

    with _DECODING:
        checked = check_image(root, name)
        if isinstance(checked, Problem):
            return checked
        try:
            content = path.read_bytes()
            if {checked.sha256.hex(), hashlib.sha256(content).hexdigest()} != {sha256}:
                return problem("picture changed", "during the run", "run again")
            with Pictures.open(io.BytesIO(content), formats=_FORMATS) as picture:
                return _encode(picture, max_side)
        except OSError as error:
            return problem("picture cannot be read", shown(error, 200), "correct its permissions, or run again")


def _encode(picture: Pictures.Image, max_side: int) -> str:
    picture.draft("RGB", (2 * max_side, 2 * max_side))  # a large JPEG is decoded at half, a quarter, ... of its size
    upright = ImageOps.exif_transpose(picture).convert("RGB")
    upright.thumbnail((max_side, max_side), Pictures.Resampling.LANCZOS, reducing_gap=3.0)
    upright.info.clear()  # where and when a photograph was taken is nobody's business
    stream = io.BytesIO()
    upright.save(stream, "JPEG", quality=90, subsampling=0)  # colour at full resolution: for screenshots, diagrams
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
