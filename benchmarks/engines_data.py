"""Conversations about one-coloured pictures: every shape of prompt that engines must render and answer alike."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from PIL import Image as Pictures

from vlmflow.data.records import Image, Record, Turn, write_records
from vlmflow.files import sha256_file, write_manifest

_COLOURS = {
    "red": ((220, 30, 30), "红色"),
    "green": ((30, 160, 40), "绿色"),
    "blue": ((30, 60, 220), "蓝色"),
    "yellow": ((240, 220, 40), "黄色"),
    "white": ((250, 250, 250), "白色"),
    "black": ((10, 10, 10), "黑色"),
}
_QUESTION = "<image>\nWhat colour is this?"


class Conversation(NamedTuple):
    """Turns, and the colours of the pictures in them."""

    turns: list[Turn]
    colours: list[str]


def _single(draw: random.Random) -> Conversation:
    (colour,) = _pick(draw)
    return Conversation([Turn("user", _QUESTION), Turn("assistant", f"This picture is {colour}.")], [colour])


def _unicode(draw: random.Random) -> Conversation:
    (colour,) = _pick(draw)
    turns = [
        Turn("user", "<image>\n🎨 这是什么颜色？ Où ça, “größer”?"),
        Turn("assistant", f"这张图是{_COLOURS[colour][1]}。"),
    ]
    return Conversation(turns, [colour])


def _system(draw: random.Random) -> Conversation:
    (colour,) = _pick(draw)
    return Conversation(
        [Turn("system", "Answer in one word."), Turn("user", _QUESTION), Turn("assistant", colour)], [colour]
    )


def _empty_system(draw: random.Random) -> Conversation:
    turns, colours = _single(draw)
    return Conversation([Turn("system", ""), *turns], colours)


def _several_turns(draw: random.Random) -> Conversation:
    turns, colours = _single(draw)
    return Conversation([*turns, Turn("user", "And in Chinese?"), Turn("assistant", _COLOURS[colours[0]][1])], colours)


def _several_pictures(draw: random.Random) -> Conversation:
    first, second = _pick(draw, 2)
    turns = [Turn("user", "<image>\n<image>\nName both colours."), Turn("assistant", f"{first} and {second}")]
    return Conversation(turns, [first, second])


def _later_picture(draw: random.Random) -> Conversation:
    turns, colours = _single(draw)
    return Conversation([Turn("user", "Hello!"), Turn("assistant", "Show me a picture."), *turns], colours)


def _text(draw: random.Random) -> Conversation:
    number = draw.randrange(1, 9)
    turns = [Turn("user", f"What comes after {number}?"), Turn("assistant", f"After {number} comes {number + 1}.")]
    return Conversation(turns, [])


KINDS: dict[str, Callable[[random.Random], Conversation]] = {
    "single": _single,
    "unicode": _unicode,
    "system": _system,
    "empty system": _empty_system,
    "several turns": _several_turns,
    "several pictures": _several_pictures,
    "later picture": _later_picture,
    "text only": _text,
}
"""What is asked; a record's category says which."""


def make_records(folder: Path, count: int, seed: int) -> list[Record]:
    """``count`` records, the kinds by turns, and their pictures in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    draw, kinds, records = random.Random(seed), list(KINDS), []
    for index in range(count):
        kind = kinds[index % len(kinds)]
        turns, colours = KINDS[kind](draw)
        square = len(colours) > 1
        images = [
            _picture(folder / f"{index}-{place}.png", colour, draw, square) for place, colour in enumerate(colours)
        ]
        records.append(Record(f"r{index}", tuple(images), tuple(turns), category=kind))
    return records


def make_data(folder: Path, count: int) -> Path:
    """A data set of ``count`` training records; returns its manifest."""
    write_records(folder / "train.jsonl", make_records(folder / "pictures", count, seed=0))
    for split in ("validation", "test"):
        write_records(folder / f"{split}.jsonl", [])
    write_manifest(folder)
    return folder / "manifest.json"


def _pick(draw: random.Random, count: int = 1) -> list[str]:
    return draw.choices(list(_COLOURS), k=count)


def _picture(path: Path, colour: str, draw: random.Random, square: bool) -> Image:
    """One colour, the shade varies a little. ``square``: always one tile of InternVL, else up to a dozen."""
    width, height = draw.randrange(24, 97), draw.randrange(24, 97)
    if square:  # of several larger ones, engines that do not share the limit of tiles would make more
        width = height = min(width, 56)
    shade = tuple(min(255, max(0, value + draw.randrange(-10, 11))) for value in _COLOURS[colour][0])
    Pictures.new("RGB", (width, height), shade).save(path)
    return Image(str(path), width, height, sha256_file(path))
