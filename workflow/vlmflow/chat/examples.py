"""Held-out questions to start from: pictures, question and what the right answer is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vlmflow.chat.conversation import PLACEHOLDER
from vlmflow.chat.media import open_picture
from vlmflow.data.records import Record, RecordFile, Turn
from vlmflow.errors import UserError
from vlmflow.evaluation.questions import asked_turns
from vlmflow.files import read_manifest

_SMALL, _LARGE = 96, 320  # pixels of a preview's longer side


@dataclass(frozen=True)
class Example:
    """A question with one turn, whose pictures come first; ``question`` is the text without their places."""

    images: tuple[Path, ...]
    question: str
    reference: str
    system: str = ""

    def pictures(self) -> list[Image.Image]:
        """The pictures as a model sees them."""
        return [open_picture(path) for path in self.images]

    def preview(self) -> Image.Image:
        """The first picture in a size to be looked at; pixels of a very small one stay squares."""
        picture = open_picture(self.images[0])
        longer = max(picture.size)
        if longer < _SMALL:
            times = _LARGE // longer
            return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
        picture.thumbnail((_LARGE, _LARGE))
        return picture


def examples_of_split(manifest: Path, split: str, count: int, prompt: str | None = None) -> list[Example]:
    """``count`` questions from all over one split of the data set beside ``manifest``, in the words of ``prompt``."""
    read_manifest(manifest)
    usable = [
        example
        for record in RecordFile(manifest.parent / f"{split}.jsonl")
        if (example := _example(record.turns, [Path(image.path) for image in record.images], prompt))
        and not record.videos
    ]
    return _spread(usable, count)


def examples_of_predictions(file: Path, count: int, prompt: str | None = None) -> list[Example]:
    """``count`` questions from all over a predictions.jsonl of an evaluation, in the words of ``prompt``."""
    return _spread([*_predicted(file, prompt)], count)


def _predicted(file: Path, prompt: str | None) -> Iterator[Example]:
    if not file.is_file():
        raise UserError("no such file", "name a predictions.jsonl of results/evaluate", file=file)
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            told = json.loads(line)
            turns = (Turn("user", told["question"]), Turn("assistant", told["reference"]))
            example = _example(turns, [Path(path) for path in told["images"]], prompt)
        except (ValueError, KeyError, TypeError) as error:
            advice = "name a predictions.jsonl of results/evaluate"
            raise UserError(f"line {number} is no prediction: {error!r}", advice, file=file) from error
        if example:
            yield example


def _example(turns: Sequence[Turn], images: list[Path], prompt: str | None) -> Example | None:
    """The example that a record makes; None for several questions, and for pictures in the midst of words."""
    system = turns[0].text if turns[0].role == "system" else ""
    said = turns[1:] if turns[0].role == "system" else turns
    lines = f"{PLACEHOLDER}\n" * len(images)
    if [turn.role for turn in said] != ["user", "assistant"] or not images or not said[0].text.startswith(lines):
        return None
    asked = asked_turns(Record("", (), tuple(said)), prompt)[-1]
    question = asked.text.removeprefix(lines)
    return None if PLACEHOLDER in question else Example(tuple(images), question, said[1].text, system)


def _spread(examples: list[Example], count: int) -> list[Example]:
    """At most ``count``, evenly spaced."""
    step = max(1.0, len(examples) / count)
    return [examples[int(place * step)] for place in range(min(count, len(examples)))]
