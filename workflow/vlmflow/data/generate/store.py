"""Answers that were paid for: one file for each, so that none is asked for twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from vlmflow.data.generate.answer import Pair, check_pairs
from vlmflow.endpoint.reply import InvalidAnswerError
from vlmflow.errors import UserError
from vlmflow.files import read_json, sha256_json, write_json


class Answer(NamedTuple):
    """Pairs about one picture, and the tokens that they took as the server counts them (invalid tries included)."""

    pairs: list[Pair]
    usage: dict[str, int]


class Store:
    """The answers to one prompt, in a folder that is shared by all data sets."""

    def __init__(self, folder: Path, config: dict[str, Any], prompt: str) -> None:
        self._folder, self._pairs = folder, config["pairs"]
        asked = {name: config[name] for name in ("model", "pairs", "temperature", "max_side")}
        self._asked = {**asked, "prompt": prompt}  # not the endpoint: a server may move

    def key(self, sha256: str) -> str:
        """Name of the answer about the picture whose bytes have this SHA-256, whatever the picture is called."""
        return sha256_json({**self._asked, "picture": sha256})

    def read(self, key: str) -> Answer | None:
        """The answer, or None when there is none that holds today."""
        path = self._path(key)
        try:
            stored = read_json(path) if path.exists() else None
            return (
                None
                if stored is None
                else Answer(check_pairs({"pairs": stored["pairs"]}, self._pairs), stored["usage"])
            )
        except (UserError, InvalidAnswerError, KeyError, TypeError):
            return None  # damaged, or written before a rule for answers was added: asked for again

    def write(self, key: str, answer: Answer) -> None:
        """Keep an answer; a killed process leaves it whole or not at all."""
        write_json(self._path(key), answer._asdict())

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.json"
