"""What is known of good pictures: in memory while a data set is checked, and in pictures.jsonl beside its splits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from vlmflow.data.similar import similar_pictures
from vlmflow.data.split import Splitter
from vlmflow.errors import Problem, UserError


class ImageFacts(msgspec.Struct, frozen=True, gc=False):
    """A good picture: size in pixels seen upright; SHA-256 of the file, hash of its upright RGB pixels.

    ``look`` is its 64-bit difference hash: pictures that look alike differ in few of its bits.
    """

    width: int
    height: int
    sha256: bytes
    pixels: bytes
    look: int


class Picture(msgspec.Struct, frozen=True, gc=False):
    """A line of pictures.jsonl: a file that records of ``split`` show; hashes of :class:`ImageFacts` in hexadecimal."""

    path: str
    pixels: str
    look: str
    split: str


class Seen:
    """What the report says of a data set's pictures, gathered while they are written."""

    def __init__(self) -> None:
        self.count = 0
        self._widths: set[int] = set()
        self._heights: set[int] = set()
        self._looks: dict[bool, dict[str, int]] = {True: {}, False: {}}

    def add(self, picture: Picture, facts: ImageFacts) -> None:
        """Count one picture."""
        self.count += 1
        self._widths.add(facts.width)
        self._heights.add(facts.height)
        self._looks[picture.split == "train"][picture.path] = facts.look

    def sizes(self) -> dict[str, Any]:
        """Number of pictures, smallest and largest width and height in pixels (None without pictures)."""
        sides = {"width": self._widths, "height": self._heights}
        spans = {name: {"min": min(side, default=None), "max": max(side, default=None)} for name, side in sides.items()}
        return {"count": self.count, **spans}

    def alike(self) -> list[tuple[str, str, int]]:
        """Held-out pictures that look like one for training: (held-out path, training path, differing bits)."""
        return similar_pictures(self._looks[False], self._looks[True])


def used_pictures(
    folder: Path, looked: Mapping[str, ImageFacts | Problem], splitter: Splitter
) -> Iterator[tuple[Picture, ImageFacts]]:
    """Each picture that usable records show, and what is known of it.

    ``folder`` is the images folder as records name it, ``looked`` what is known by name, ``splitter`` has every usable
    record's pictures.
    """
    below = "" if folder == Path() else f"{folder.as_posix()}/"
    for name, facts in looked.items():
        if isinstance(facts, ImageFacts) and facts.pixels in splitter:
            split = splitter.split(facts.pixels)
            yield Picture(below + name, facts.pixels.hex(), f"{facts.look:016x}", split), facts


def write_pictures(path: Path, pictures: Iterable[tuple[Picture, ImageFacts]]) -> Seen:
    """Write pictures, one JSON object a line, in a directory that is not in use yet; returns what was seen."""
    encoder, seen = msgspec.json.Encoder(), Seen()
    with path.open("wb") as stream:
        for picture, facts in pictures:
            stream.write(encoder.encode(picture) + b"\n")
            seen.add(picture, facts)
    return seen


def read_pictures(path: Path) -> Iterator[Picture]:
    """The pictures of a file, one after the other; a missing file or broken line is a :class:`UserError` naming it."""
    decoder = msgspec.json.Decoder(Picture)
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                try:
                    yield decoder.decode(line)
                except msgspec.MsgspecError as error:
                    advice = "delete the data set's folder and run snakemake again"
                    raise UserError(f"line {number} is no picture: {error}", advice, file=path) from error
    except FileNotFoundError:
        raise UserError("no such file", "run the stage that makes it (snakemake does)", file=path) from None
