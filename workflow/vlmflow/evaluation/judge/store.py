"""Verdicts that were paid for: one file for each, so that none is asked for twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from vlmflow.errors import UserError
from vlmflow.evaluation.judge.prompt import SCORES, Prompt, Verdict
from vlmflow.files import read_json, sha256_json, write_json

_LAYOUT = 1  # of the material in full_prompt: raise it with every change there


class Kept(NamedTuple):
    """A verdict, and the tokens that it took as the server counts them."""

    verdict: Verdict
    usage: dict[str, int]


class Store:
    """The verdicts of one judge, in a folder that is shared by all evaluations and checkpoints."""

    def __init__(self, folder: Path, config: dict[str, Any], prompt: Prompt) -> None:
        asked = ("model", "temperature", *(("max_side",) if config["pictures"] else ()))
        self._folder = folder
        self._asked = {**{name: config[name] for name in asked}, "prompt": prompt.sha256, "layout": _LAYOUT}

    def key(self, question: str, references: list[str], answer: str, pictures: list[str]) -> str:
        """Name of a verdict; ``pictures`` are the SHA-256 of those that the judge sees. A server may move."""
        material = {"question": question, "references": references, "answer": answer, "pictures": pictures}
        return sha256_json({**self._asked, **material})

    def read(self, key: str) -> Kept | None:
        """The verdict, or None when there is none that can be read."""
        path = self._path(key)
        try:
            stored = read_json(path) if path.exists() else None
            if stored is None or stored["score"] not in SCORES.values() or not isinstance(stored["reason"], str):
                return None
            return Kept(Verdict(float(stored["score"]), stored["reason"]), dict(stored["usage"]))
        except (UserError, KeyError, TypeError, ValueError):
            return None  # damaged: asked for again

    def write(self, key: str, kept: Kept) -> None:
        """Keep a verdict; a killed process leaves it whole or not at all."""
        write_json(self._path(key), {**kept.verdict._asdict(), "usage": kept.usage})

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.json"
