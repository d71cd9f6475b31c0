"""Records as tensors: encoding one sample, collating a micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from vlmflow.data.read import load_pictures
from vlmflow.data.records import RecordFile
from vlmflow.errors import UserError
from vlmflow.files import read_manifest
from vlmflow.models.pictures import picture_lengths, pixel_values
from vlmflow.models.template import encode, picture_token
from vlmflow.training.schedule import Schedule

if TYPE_CHECKING:
    from vlmflow.training.features import FeatureCache

Batch = dict[str, Any]


@dataclass(frozen=True)
class Group:
    """Neighbouring records of one data set that come equally often: what the schedule draws from."""

    dataset: int
    start: int
    size: int
    repeat: float


class Samples(Dataset[Batch]):
    """The training run in order: item ``i`` is the ``i``-th sample that the optimizer sees.

    ``tokens`` is the manifest of the stage that counted their tokens. ``records`` and ``lengths`` hold, per data set,
    the records (read when asked for) and their number of tokens, pictures included.
    """

    def __init__(
        self,
        tokens: Path,
        processor: Any,
        schedule: dict[str, Any],
        repeat: Sequence[float],
        weights: Sequence[float] | None = None,
    ) -> None:
        indices = range(len(read_manifest(tokens)["datasets"]))
        self.records = [RecordFile(tokens.parent / f"{index}.jsonl") for index in indices]
        self._rows = [np.load(tokens.parent / f"{index}.npy") for index in indices]
        self.lengths = [rows["tokens"] for rows in self._rows]
        self._groups = [
            group
            for index, rows, times in zip(indices, self._rows, repeat, strict=True)
            for group in groups(index, rows["repeat"], times)
        ]
        self.schedule = Schedule(
            [group.size for group in self._groups],
            [group.repeat for group in self._groups],
            weights=None if weights is None else shared_weights(self._groups, weights),
            **schedule,
        )
        self._processor = processor
        self._picture_token = processor.tokenizer.convert_tokens_to_ids(picture_token(processor.tokenizer))
        self.cache: FeatureCache | None = None
        """Where the features of pictures are, once they are; pixel values are made otherwise."""

    def __len__(self) -> int:
        return len(self.schedule)

    def __getitem__(self, position: int) -> Batch:
        return self.sample(*self.place(position))

    def place(self, position: int) -> tuple[int, int]:
        """(data set, record) of the ``position``-th sample."""
        group, index = self.schedule[position]
        return self._groups[group].dataset, self._groups[group].start + index

    def positions(self, step: int) -> range:
        """Positions of the samples of an optimizer step."""
        return range(step * self.schedule.batch_size, (step + 1) * self.schedule.batch_size)

    def row(self, position: int) -> np.void:
        """What was counted of the ``position``-th sample (vlmflow.tokens.columns)."""
        dataset, index = self.place(position)
        row: np.void = self._rows[dataset][index]
        return row

    def longest(self, column: str, count: int = 1) -> list[tuple[int, int]]:
        """(data set, record) of the ``count`` records with the most of ``column``, the most first."""
        values = np.concatenate([rows[column] for rows in self._rows])
        owners = np.repeat(np.arange(len(self._rows)), [len(rows) for rows in self._rows])
        indices = np.concatenate([np.arange(len(rows)) for rows in self._rows])
        most = np.argsort(-values, kind="stable")[:count]
        return [(int(owners[place]), int(indices[place])) for place in most]

    def most(self, column: str) -> int:
        """The largest number of ``column`` of any record."""
        dataset, index = self.longest(column)[0]
        return int(self._rows[dataset][index][column])

    def tile_limit(self, dataset: int, index: int) -> int | None:
        """Tiles that the pictures of a record share, if they are fewer than the model's limit."""
        return int(self._rows[dataset][index]["tile_limit"]) or None

    def with_pictures(self) -> list[tuple[int, int]]:
        """(data set, record) of every record that has pictures."""
        return [
            (dataset, int(index)) for dataset, rows in enumerate(self._rows) for index in rows["tiles"].nonzero()[0]
        ]

    def sample(self, dataset: int, index: int) -> Batch:
        """``input_ids`` and ``labels`` (length,), ``image_places`` (picture tokens,); of a record with pictures also
        ``pixel_values`` (tiles, 3, h, w), or ``features`` (tiles, patches, width) if they are cached."""
        record, row = self.records[dataset][index], self._rows[dataset][index]
        sizes = [(image.width, image.height) for image in record.images]
        max_tiles = self.tile_limit(dataset, index)
        pictures = picture_lengths(self._processor, sizes, max_tiles)
        encoded = encode(self._processor.tokenizer, record.turns, pictures)
        if len(encoded.input_ids) != row["tokens"]:
            raise UserError(
                f"{len(encoded.input_ids)} tokens, but {row['tokens']} were counted",
                "delete the folder and run snakemake again", file=self.records[dataset].path, record=record.id,
            )  # fmt: skip
        ids = torch.tensor(encoded.input_ids)
        sample = {"input_ids": ids, "labels": torch.tensor(encoded.labels)}
        sample["image_places"] = (ids == self._picture_token).nonzero()[:, 0]
        if record.images and self.cache is not None:
            sample["features"] = self.cache.load(record, max_tiles)
        elif record.images:
            sample["pixel_values"] = pixel_values(self._processor, load_pictures(record), max_tiles)
        return sample


def groups(dataset: int, repeats: np.ndarray, times: float) -> list[Group]:
    """The runs of equal ``repeats`` (records,) of a data set whose own repeat is ``times``."""
    starts = [0, *(np.flatnonzero(np.diff(repeats)) + 1).tolist()]
    ends = [*starts[1:], len(repeats)]
    own = [float(repeats[start]) if len(repeats) else 1.0 for start in starts]
    return [
        Group(dataset, start, end - start, times if each == 1 else times * each)
        for start, end, each in zip(starts, ends, own, strict=True)
    ]


def shared_weights(members: Sequence[Group], weights: Sequence[float]) -> list[float]:
    """The weight of each group: its data set's, in proportion to the samples that it stands for."""
    whole = [0.0] * len(weights)
    for group in members:
        whole[group.dataset] += group.size * group.repeat
    return [
        weights[group.dataset] * (group.size * group.repeat / whole[group.dataset] if group.size else 1.0)
        for group in members
    ]
