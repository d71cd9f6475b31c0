"""Records as tensors: encoding one sample, collating a micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image as Pictures
from PIL import ImageOps
from torch.utils.data import Dataset

from vlmflow.data.records import Record, read_records
from vlmflow.errors import UserError
from vlmflow.files import read_manifest
from vlmflow.models.directory import picture_tokens
from vlmflow.models.template import IGNORED, encode
from vlmflow.training.schedule import Schedule

Batch = dict[str, torch.Tensor]


def read_split(manifest: Path, split: str) -> list[Record]:
    """The records of one split of the data set beside ``manifest``."""
    read_manifest(manifest)
    return read_records(manifest.parent / f"{split}.jsonl")


def load_pictures(record: Record) -> list[Pictures.Image]:
    """The pictures of a record in RGB, upright as their EXIF orientation says."""
    pictures = []
    for image in record.images:
        try:
            with Pictures.open(image.path) as picture:
                pictures.append(ImageOps.exif_transpose(picture).convert("RGB"))
        except OSError as error:
            advice = "it was there when the data set was checked; run snakemake again to check it anew"
            raise UserError(f"cannot read the picture: {error}", advice, file=image.path, record=record.id) from error
    return pictures


def pixel_values(processor: Any, pictures: list[Pictures.Image]) -> torch.Tensor:
    """(pictures, 3, height, width), resized and normalised as the model directory says."""
    values: torch.Tensor = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    return values


class Samples(Dataset[Batch]):
    """The training run in order: item ``i`` is the ``i``-th sample that the optimizer sees."""

    def __init__(self, data: Sequence[Path], processor: Any, schedule: dict[str, Any], max_length: int) -> None:
        self.records = [read_split(manifest, "train") for manifest in data]
        self.schedule = Schedule([len(records) for records in self.records], **schedule)
        self._processor = processor
        self._picture_tokens = picture_tokens(processor)
        for manifest, records in zip(data, self.records, strict=True):
            self._check_lengths(manifest, records, max_length)

    def __len__(self) -> int:
        return len(self.schedule)

    def __getitem__(self, position: int) -> Batch:
        dataset, index = self.schedule[position]
        return self.sample(self.records[dataset][index])

    def sample(self, record: Record) -> Batch:
        """``input_ids`` and ``labels`` (length,), ``pixel_values`` (pictures, 3, h, w) if the record has any."""
        encoded = self._encode(record)
        sample = {"input_ids": torch.tensor(encoded.input_ids), "labels": torch.tensor(encoded.labels)}
        if record.images:
            sample["pixel_values"] = pixel_values(self._processor, load_pictures(record))
        return sample

    def _encode(self, record: Record) -> Any:
        return encode(self._processor.tokenizer, record.turns, [self._picture_tokens] * len(record.images))

    def _check_lengths(self, manifest: Path, records: list[Record], max_length: int) -> None:
        """Nothing is cut at training time: every record must fit, and have something to learn."""
        for record in records:
            encoded = self._encode(record)
            length = len(encoded.input_ids)
            if length > max_length:
                advice = "raise max_length, or shorten or remove the record"
                raise UserError(
                    f"{length} tokens, picture included, but max_length is {max_length}",
                    advice, file=manifest.parent / "train.jsonl", record=record.id,
                )  # fmt: skip
            if all(label == IGNORED for label in encoded.labels):
                raise UserError("no token to learn", file=manifest.parent / "train.jsonl", record=record.id)


def collate(samples: Sequence[Batch], pad_token: int) -> Batch:
    """Right-pad to the longest sample: ``input_ids``, ``attention_mask``, ``labels`` (batch, length), all pictures."""
    padding = {"input_ids": pad_token, "labels": IGNORED}
    batch = {
        name: torch.nn.utils.rnn.pad_sequence([s[name] for s in samples], batch_first=True, padding_value=value)
        for name, value in padding.items()
    }
    ones = [torch.ones_like(sample["input_ids"]) for sample in samples]
    batch["attention_mask"] = torch.nn.utils.rnn.pad_sequence(ones, batch_first=True)
    pictures = [sample["pixel_values"] for sample in samples if "pixel_values" in sample]
    if pictures:
        batch["pixel_values"] = torch.cat(pictures)
    return batch
