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

from vlmflow.data.read import load_pictures, read_split
from vlmflow.data.records import Image, Record, Turn
from vlmflow.errors import UserError
from vlmflow.files import sha256_json

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

    A ``checkpoint`` with ``+blind`` is shown other records' pictures, or grey ones where no other record has as many;
    one with ``+blank`` is shown grey ones.
    """
    blind, blank = checkpoint.endswith("+blind"), checkpoint.endswith("+blank")
    shown = shuffle_pictures(records) if blind else records
    return [
        Question(
            record.id,
            asked_turns(record, prompt),
            record,
            blank or (blind and bool(own.images) and record.images == own.images),
        )
        for record, own in zip(shown, records, strict=True)
    ]


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
    """Each record with other pictures, as many, of another record: what can be answered without looking.

    Records that show the same pictures get the same ones. Pictures stay
    if there are no others of the same number.
    """
    groups: dict[int, dict[tuple[str, ...], tuple[Image, ...]]] = {}
    for record in records:
        groups.setdefault(len(record.images), {})[_content(record)] = record.images
    following: dict[tuple[str, ...], tuple[Image, ...]] = {}
    for group in groups.values():
        contents = list(group)
        order = [contents[place] for place in np.random.default_rng(seed).permutation(len(contents))]
        following |= {content: group[other] for content, other in zip(order, [*order[1:], order[0]], strict=True)}
    return [msgspec.structs.replace(record, images=following[_content(record)]) for record in records]


def _content(record: Record) -> tuple[str, ...]:
    return tuple(image.sha256 for image in record.images)
