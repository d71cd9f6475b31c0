"""A checked data set as later stages read it: the records of a split, and the pictures that a record shows."""

from __future__ import annotations

from pathlib import Path

from PIL import Image as Pictures
from PIL import ImageOps

from vlmflow.data.records import Record, read_records
from vlmflow.errors import UserError
from vlmflow.files import read_manifest


def read_split(manifest: Path, split: str) -> list[Record]:
    """The records of one split of the data set beside ``manifest``."""
    read_manifest(manifest)
    return read_records(manifest.parent / f"{split}.jsonl")


def load_pictures(record: Record) -> list[Pictures.Image]:
    """The pictures of a record in RGB, upright as their EXIF orientation says."""
    pictures = []
    for image in record.images:
        try:
            with Pictures.open(image.path) as picture:
                pictures.append(ImageOps.exif_transpose(picture).convert("RGB"))
        except OSError as error:
            advice = "it was there when the data set was checked; run snakemake again to check it anew"
            raise UserError(f"cannot read the picture: {error}", advice, file=image.path, record=record.id) from error
    return pictures
