"""What answers questions: a model in transformers, or in LMDeploy. Both get the same token ids and the same pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vlmflow.evaluation.answers import Answer
from vlmflow.evaluation.questions import Question
from vlmflow.files import read_json


@dataclass(frozen=True)
class Source:
    """Manifests that a checkpoint consists of: a model directory, and what was trained over it and is not merged."""

    model: Path
    projector: Path | None = None
    """Of a pretraining: the parts that it trained replace the model's."""
    adapter: Path | None = None
    """Of a fine-tuning."""


@dataclass(frozen=True)
class Settings:
    """How answers are generated. Decoding is greedy."""

    max_new_tokens: int
    max_tiles: int | None
    """Tiles that the pictures of a question share; None is the model's own limit."""


class Engine(Protocol):
    """A loaded model."""

    def answer(self, questions: Sequence[Question], known: Collection[str]) -> Iterator[Mapping[str, Answer]]:
        """Groups of answers as they are ready, by key of the question; those in ``known`` are not asked again."""

    def close(self) -> None:
        """Free what it holds."""


def prompt_hash(ids: Sequence[int]) -> str:
    """By this two engines can tell whether they were asked the same."""
    return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()[:12]


def end_tokens(folder: Path) -> set[int]:
    """What ends an answer of a model directory."""
    ends = read_json(folder / "generation_config.json")["eos_token_id"]
    return set(ends) if isinstance(ends, list) else {ends}


def decode(tokenizer: Any, tokens: Sequence[int], ends: Collection[int], prompt: str) -> Answer:
    """The answer in generated ``tokens``, which may go on after an end token; ``prompt`` is the question's hash."""
    length = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    text = tokenizer.decode(tokens[:length], skip_special_tokens=True).strip()
    return Answer(text, "stop" if length < len(tokens) else "length", length, prompt)
