"""The length of records, and how those that are too long are made to fit."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from vlmflow.data.records import Record
from vlmflow.errors import Problem, UserError
from vlmflow.models.pictures import cuts_into_tiles, picture_lengths, picture_tiles
from vlmflow.models.template import PLACEHOLDER, Counts, check_template, count, special_tokens

TOO_LONG = "longer than max_length"
_MARKUP = {"<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>"}
"""Special tokens of InternVL tokenizers that belong into the text: the data stage writes boxes with them."""


@dataclass(frozen=True)
class Measured:
    """A record as training will see it."""

    record: Record
    tokens: int
    supervised: int
    picture_tokens: int
    tiles: int
    tile_limit: int = 0
    """What its pictures share in place of the model's limit; 0 if it was not lowered."""


class Budget:
    """Measures records for one model and applies ``too_long``."""

    def __init__(self, processor: Any, max_length: int, too_long: str) -> None:
        if too_long == "fewer-tiles" and not cuts_into_tiles(processor):
            reason = "fewer-tiles needs a model that cuts pictures into tiles (internvl)"
            raise UserError(reason, "choose drop or fewer-turns, or raise max_length", field="too_long")
        check_template(processor.tokenizer)
        self._processor, self._max_length, self._too_long = processor, max_length, too_long
        forbidden = sorted(special_tokens(processor.tokenizer) - _MARKUP, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, forbidden)))

    def measure(self, records: Sequence[Record]) -> list[Measured | Problem]:
        """Each record as it is, or what is wrong with it whatever its length."""
        problems = [self._wrong(record) for record in records]
        counted = iter(self._count([record for record, wrong in zip(records, problems, strict=True) if not wrong]))
        return [wrong or self._measured(record, next(counted)) for record, wrong in zip(records, problems, strict=True)]

    def fit(self, measured: Measured) -> Measured | Problem:
        """The record itself if it fits, or shortened as ``too_long`` says, or what is wrong."""
        if measured.tokens <= self._max_length:
            return measured
        fitting = (shorter for shorter in self._shorter(measured) if shorter.tokens <= self._max_length)
        length = f"{measured.tokens} tokens, {measured.picture_tokens} of them for pictures"
        return next(fitting, None) or Problem(
            f"{TOO_LONG}: {length}, but max_length is {self._max_length}",
            "raise max_length, or shorten or remove the record",
            record=measured.record.id,
        )

    def _shorter(self, measured: Measured) -> Iterator[Measured]:
        """What may take the record's place, the longest first."""
        record = measured.record
        if self._too_long == "fewer-turns":
            for pairs in range(len(record.turns) // 2 - 1, 0, -1):
                shorter = self.measure([without_last_turns(record, pairs)])[0]
                if isinstance(shorter, Measured):
                    yield shorter
        if self._too_long == "fewer-tiles" and record.images:
            text = measured.tokens - measured.picture_tokens
            for limit in range(self._processor.image_processor.max_patches - 1, 0, -1):
                yield self._with_pictures(record, text, measured.supervised, limit)

    def _count(self, records: Sequence[Record]) -> list[Counts]:
        return count(self._processor.tokenizer, [record.turns for record in records])

    def _measured(self, record: Record, counts: Counts) -> Measured | Problem:
        if counts.pictures != len(record.images):
            reason = f"number of placeholders: {counts.pictures} for {len(record.images)} picture(s)"
            return Problem(reason, f"write {PLACEHOLDER} once for each picture", record=record.id)
        if not counts.supervised:
            return Problem("no token to learn: its answers are empty", "write the answer", record=record.id)
        return self._with_pictures(record, counts.text, counts.supervised)

    def _with_pictures(self, record: Record, text: int, supervised: int, limit: int = 0) -> Measured:
        sizes = [(image.width, image.height) for image in record.images]
        pictures = sum(picture_lengths(self._processor, sizes, limit or None))
        tiles = sum(picture_tiles(self._processor, sizes, limit or None))
        return Measured(record, text + pictures, supervised, pictures, tiles, limit)

    def _wrong(self, record: Record) -> Problem | None:
        if record.videos:
            advice = "remove the record, or take a model that does"
            return Problem("video: this model family takes no videos", advice, record=record.id)
        for turn in record.turns:
            text = turn.text.replace(PLACEHOLDER, "") if turn.role == "user" else turn.text
            if special := self._special.search(text):
                advice = "remove it: the model would take it for a control token of its own"
                return Problem(f"special token in the text: {special[0]}", advice, record=record.id, field=turn.role)
        return None


def without_last_turns(record: Record, pairs: int) -> Record:
    """The first ``pairs`` questions with their answers, and the pictures that these speak of."""
    start = int(record.turns[0].role == "system")
    turns = record.turns[: start + 2 * pairs]
    images = record.images[: sum(turn.text.count(PLACEHOLDER) for turn in turns)]
    boxes = tuple(box for box in record.boxes if box.image < len(images))
    return msgspec.structs.replace(record, turns=turns, images=images, boxes=boxes)
