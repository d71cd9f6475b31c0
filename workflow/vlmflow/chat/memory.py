"""What a model has read of a conversation already, so that the next turn is not read from the beginning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class Read:
    """Token ids that a KV cache of transformers holds, and the pictures among them."""

    ids: list[int]
    pictures: tuple[Image.Image, ...]
    cache: Any

    def beginning(
        self, ids: Sequence[int], pictures: Sequence[Image.Image], lengths: Sequence[int], token: int
    ) -> tuple[int, int]:
        """(tokens, pictures) at the beginning of ``ids`` that are held here too; at least one token is left to read.

        ``lengths`` are the tokens of each picture, each of them ``token``. No picture is known in part.
        """
        pairs = enumerate(zip(self.ids, ids, strict=False))
        differs = next((place for place, (old, new) in pairs if old != new), min(len(self.ids), len(ids)))
        known = min(differs, len(ids) - 1)
        places = [place for place, value in enumerate(ids) if value == token]
        for index, length in enumerate(lengths):
            own, places = places[:length], places[length:]
            same = index < len(self.pictures) and pictures[index] is self.pictures[index]
            if not same or own[-1] >= known:
                return min(known, own[0]), index
        return known, len(lengths)

    def cut(self, known: int) -> bool:
        """Keep the first ``known`` tokens in the cache; False where that cannot be done (a sliding window)."""
        try:
            self.cache.crop(known - self.cache.get_seq_length())
        except RuntimeError:
            return False
        return bool(self.cache.get_seq_length() == known)
