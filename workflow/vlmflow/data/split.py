"""Splits by picture content: the same picture is never on two sides, whatever its file is called or encoded as."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

SPLITS = ("train", "validation", "test")


class Splitter:
    """Assigns content hashes to splits.

    ``fractions`` are the shares ``validation`` and ``test``. A picture's place depends on its content and ``seed``
    alone, so a further picture moves no other. Records that share pictures, directly or through others, stay together
    where the smallest of all their hashes falls.
    """

    def __init__(self, fractions: dict[str, float], seed: int) -> None:
        self._validation, self._test, self._seed = fractions["validation"], fractions["test"], seed
        self._parents: dict[bytes, bytes] = {}

    def tie(self, contents: Sequence[bytes]) -> None:
        """Keep these content hashes, those of one record, together."""
        if len(contents) == 1:
            self._parents.setdefault(contents[0], contents[0])
            return
        roots = {self._root(content) for content in contents}
        self._parents.update(dict.fromkeys(roots, min(roots)))

    def __contains__(self, content: bytes) -> bool:
        return content in self._parents

    def split(self, content: bytes) -> str:
        """The split of a content hash; final once all records are tied."""
        key = f"{self._seed}:{self._root(content).hex()}"
        place = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4]) / 2**32
        if place < 1 - self._validation - self._test:
            return "train"
        return "validation" if place < 1 - self._test else "test"

    def _root(self, content: bytes) -> bytes:
        """The smallest hash that ``content`` is tied to; shortens the way there."""
        parents = self._parents
        while (parent := parents.setdefault(content, content)) != content:
            parents[content] = parents[parent]
            content = parent
        return content
