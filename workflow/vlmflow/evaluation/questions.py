"""What a checkpoint is asked: the last question of every record, in an evaluation's words, perhaps without pictures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from PIL import Image as Pictures

from vlmflow.data.records import Record, Turn
from vlmflow.errors import UserError
from vlmflow.files import sha256_json
from vlmflow.training.samples import load_pictures, read_split

PLACE = "{question}"
"""Stands for the question in an evaluation's ``prompt``."""
_PICTURES_FIRST = re.compile(r"(?:<image>\s*)*")
_GREY = (127, 127, 127)


@dataclass(frozen=True)
class Question:
    """A conversation that ends with a question, and whether its pictures are shown or only their size is."""

    id: str
    turns: tuple[Turn, ...]
    record: Record
    """Its pictures, which may be those of another record, and where it comes from."""
    blank: bool = False

    @cached_property
    def key(self) -> str:
        """SHA-256 of all that an answer depends on besides the model: texts, and pictures by content."""
        pictures = [[image.sha256, image.width, image.height] for image in self.record.images]
        return sha256_json([[[turn.role, turn.text] for turn in self.turns], pictures, self.blank])

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(width, height) of the pictures in pixels."""
        return [(image.width, image.height) for image in self.record.images]

    def pictures(self) -> list[Pictures.Image]:
        """The pictures in RGB; grey ones of the same size if blank."""
        if self.blank:
            return [Pictures.new("RGB", size, _GREY) for size in self.sizes]
        return load_pictures(self.record)


def read_evaluated(config: dict[str, Any], data: Path) -> list[Record]:
    """The records of an evaluation (``config``: split, limit) in the data set of manifest ``data``.

    Raises :class:`UserError` if there are none, or if one does not end with a question and its answer.
    """
    records = read_split(data, config["split"])[: config["limit"]]
    if not records:
        raise UserError(f"the {config['split']} split is empty", "give `split` a larger share", file=data.parent)
    for record in records:
        if [turn.role for turn in record.turns[-2:]] != ["user", "assistant"]:
            reason = "a record to evaluate ends with a question and its answer, the reference"
            raise UserError(reason, "add the answer, or leave the record out", file=data.parent, record=record.id)
        if record.videos:
            raise UserError("videos are not evaluated", "leave the record out", file=data.parent, record=record.id)
    return records


def questions_of(records: Sequence[Record], prompt: str | None, checkpoint: str) -> list[Question]:
    """The questions in the words of ``prompt``.

    A ``checkpoint`` with ``+blind`` is shown the pictures of another record, one with ``+blank`` grey ones.
    """
    shown = shuffle_pictures(records) if checkpoint.endswith("+blind") else records
    blank = checkpoint.endswith("+blank")
    return [Question(record.id, asked_turns(record, prompt), record, blank) for record in shown]


def asked_turns(record: Record, prompt: str | None) -> tuple[Turn, ...]:
    """The turns up to the last question, which ``prompt`` may frame; pictures at its beginning stay there."""
    *earlier, question = record.turns[:-1]
    if prompt is None:
        return (*earlier, question)
    pictures = _PICTURES_FIRST.match(question.text)
    first = pictures[0] if pictures else ""
    return (*earlier, Turn(question.role, first + prompt.replace(PLACE, question.text[len(first) :])))


def shard_of(questions: Sequence[Question], shard: str) -> list[Question]:
    """Part ``I-of-N`` of the questions: every N-th, so that all parts take about as long."""
    index, count = map(int, shard.split("-of-"))
    return list(questions[index - 1 :: count])


def shuffle_pictures(records: Sequence[Record], seed: int = 0) -> list[Record]:
    """Each record with the pictures of another one that has as many: what can be answered without looking."""
    shuffled = list(records)
    groups: dict[int, list[int]] = {}
    for index, record in enumerate(records):
        groups.setdefault(len(record.images), []).append(index)
    for count, members in groups.items():
        if count and len(members) > 1:
            order = np.random.default_rng(seed).permutation(members).tolist()
            for index, other in zip(order, [*order[1:], order[0]], strict=True):
                shuffled[index] = msgspec.structs.replace(records[index], images=records[other].images)
    return shuffled
