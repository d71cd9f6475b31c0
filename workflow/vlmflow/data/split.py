"""Splits by picture content: the same picture is never on two sides, whatever its file is called or encoded as."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

SPLITS = ("train", "validation", "test")


def assign(pixels: Sequence[Sequence[str]], fractions: dict[str, float], seed: int) -> list[str]:
    """The split of each record, given the content hashes of its pictures (of its text, if it has none).

    ``fractions`` are the shares ``validation`` and ``test``. A picture's place depends on its content and ``seed``
    alone, so a further picture moves no other. Records that share pictures, directly or through others, stay together
    where the smallest of all their hashes falls.
    """
    parents: dict[str, str] = {}
    for hashes in pixels:
        roots = {_root(parents, pixel) for pixel in hashes}
        smallest = min(roots)
        parents.update(dict.fromkeys(roots, smallest))
    return [_split(_root(parents, hashes[0]), fractions, seed) for hashes in pixels]


def _root(parents: dict[str, str], pixel: str) -> str:
    """The smallest hash that ``pixel`` is tied to; shortens the way there."""
    while (parent := parents.setdefault(pixel, pixel)) != pixel:
        parents[pixel] = parents[parent]
        pixel = parent
    return pixel


def _split(pixel: str, fractions: dict[str, float], seed: int) -> str:
    place = int(hashlib.sha256(f"{seed}:{pixel}".encode()).hexdigest()[:8], 16) / 2**32
    if place < 1 - fractions["validation"] - fractions["test"]:
        return "train"
    return "validation" if place < 1 - fractions["test"] else "test"
