"""One training sample as the model really sees it, to be looked at before trusting a run."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

from vlmflow.files import write_json
from vlmflow.models.pictures import cuts_into_tiles, picture_lengths
from vlmflow.models.template import IGNORED, picture_token
from vlmflow.training.samples import Samples
from vlmflow.training.sheet import draw_sheet, tile_pictures

MARKS = ("⟦", "⟧")
"""Around what is supervised, in the text for people."""
_LOOKED_AT = 1_000  # samples among which the first with a picture is taken

Part = tuple[str, bool]
"""A piece of the text, and whether it is supervised."""


def save_example(processor: Any, samples: Samples, directory: Path) -> None:
    """Write the first sample with a picture, or the first of all if there is none, into ``directory``.

    ``example.json``: ``id``, ``images`` (paths), ``text`` (decoded; a picture's many tokens as one and their number),
    ``supervised`` (what is trained), ``marked`` (``text`` with that between :data:`MARKS`), ``parts`` (the same as
    pairs of text and whether it is trained), ``tokens``, ``supervised_tokens``. ``example.png``: the tiles.
    """
    samples = copy.copy(samples)
    samples.cache = None  # the pictures themselves, not what the tower made of them
    position = _first_with_picture(samples)
    dataset, index = samples.place(position)
    record, sample = samples.records[dataset][index], samples[position]
    ids, labels = sample["input_ids"].tolist(), sample["labels"].tolist()
    parts = text_parts(processor.tokenizer, ids, labels)
    write_json(
        directory / "example.json",
        {
            "id": record.id,
            "images": [image.path for image in record.images],
            "text": "".join(text for text, _ in parts),
            "supervised": "".join(text for text, trained in parts if trained),
            "marked": "".join(f"{MARKS[0]}{text}{MARKS[1]}" if trained else text for text, trained in parts),
            "parts": parts,
            "tokens": len(ids),
            "supervised_tokens": sum(label != IGNORED for label in labels),
        },
    )
    if "pixel_values" in sample:
        sizes = [(image.width, image.height) for image in record.images]
        tiles = tile_pictures(processor.image_processor, sample["pixel_values"])
        draw_sheet(sizes, tile_numbers(processor, ids, len(sizes)), tiles).save(directory / "example.png")


def text_parts(tokenizer: Any, ids: list[int], labels: list[int]) -> list[Part]:
    """The decoded ``ids``, cut where supervision (labels other than :data:`IGNORED`) begins and ends.

    A run of a picture's tokens is written as the token and their number, as in ``<IMG_CONTEXT> x 1792``.
    """
    name = picture_token(tokenizer)
    token = tokenizer.convert_tokens_to_ids(name)
    parts: list[Part] = []
    end, before = 0, ""
    for (trained, picture), run in itertools.groupby(
        (label != IGNORED, token_id == token) for token_id, label in zip(ids, labels, strict=True)
    ):
        length = len(list(run))
        end += length
        # a tokenizer may decode a piece of its own differently from the same piece within the whole
        whole = tokenizer.decode(ids[:end], clean_up_tokenization_spaces=False)
        text = f"{name} x {length}" if picture and length > 1 else whole[len(before) :]
        before = whole
        if parts and parts[-1][1] == trained:
            parts[-1] = (parts[-1][0] + text, trained)
        else:
            parts.append((text, trained))
    return parts


def tile_numbers(processor: Any, ids: list[int], pictures: int) -> list[int]:
    """How many tiles each of ``pictures`` has become, by the tokens that stand for it."""
    if not cuts_into_tiles(processor):
        return [1] * pictures
    token = processor.tokenizer.convert_tokens_to_ids(picture_token(processor.tokenizer))
    each = picture_lengths(processor, [(1, 1)], 1)[0]
    runs = [len(list(run)) for found, run in itertools.groupby(ids) if found == token]
    return [length // each for length in runs]


def _first_with_picture(samples: Samples) -> int:
    positions = range(min(len(samples), _LOOKED_AT))
    return next((position for position in positions if samples.row(position)["tiles"]), 0)
