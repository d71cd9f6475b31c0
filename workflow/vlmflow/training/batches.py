"""Micro-batches: the samples of one optimizer step, packed for one process, in the order of the schedule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from vlmflow.errors import UserError
from vlmflow.models.template import IGNORED
from vlmflow.training.interrupts import ignore_in_worker
from vlmflow.training.packing import pack_step
from vlmflow.training.samples import Batch, Samples

_FULL = 1.5  # attention over a table of padded rows may cost so many times the work and is still the faster
_ROUNDED = 64  # tokens: rows of the table of attention.py; cuDNN makes a plan for each of its shapes


@dataclass(frozen=True)
class Room:
    """What a micro-batch may hold, unless a single sample holds more."""

    tokens: int
    tiles: int

    @classmethod
    def of(cls, samples: Samples, micro_batch_size: int, few_tiles: bool) -> Room:
        """As much as ``micro_batch_size`` of the longest records; shorter ones are packed into it.

        Pictures count by their tokens alone unless ``few_tiles``: a tower that learns keeps much of each tile.
        """
        tokens = micro_batch_size * samples.most("tokens")
        return cls(tokens, micro_batch_size * max(samples.most("tiles"), 1) if few_tiles else tokens)


@dataclass(frozen=True)
class Share:
    """Which process of how many."""

    rank: int = 0
    processes: int = 1


def micro_batches(samples: Samples, step: int, room: Room, share: Share) -> list[list[int]]:
    """Positions of the samples in each micro-batch of a process in an optimizer step."""
    positions = samples.positions(step)
    rows = [samples.row(position) for position in positions]
    tokens, tiles = (np.array([row[column] for row in rows]) for column in ("tokens", "tiles"))
    packed = pack_step(tokens, tiles, share.processes, room.tokens, room.tiles)[share.rank]
    return [[positions[index] for index in batch] for batch in packed]


class _Order(Sampler[list[int]]):
    """Micro-batches of all steps from ``first`` on, for worker processes to prepare."""

    def __init__(self, samples: Samples, first: int, room: Room, share: Share) -> None:
        self._samples, self._first, self._room, self._share = samples, first, room, share

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self._first, self._samples.schedule.steps):
            yield from micro_batches(self._samples, step, self._room, self._share)


class Loader:
    """Optimizer steps from ``first`` on: each an iterable of this process's micro-batches, made as they are asked for.

    To the Trainer an optimizer step is one batch. ``workers`` processes decode pictures and tokenise ahead.
    """

    def __init__(self, samples: Samples, first: int, share: Share, workers: int, dtype: torch.dtype) -> None:
        self._samples, self._share, self._first = samples, share, first
        self._options: dict[str, Any] = {
            "collate_fn": _Told(Packer(dtype)),
            "num_workers": workers,
            "pin_memory": torch.cuda.is_available(),
            "prefetch_factor": 2 if workers else None,
            "worker_init_fn": ignore_in_worker,
        }

    def __len__(self) -> int:
        return self._samples.schedule.steps

    def __iter__(self) -> Iterator[Step]:
        for step in range(self._first, len(self)):
            yield Step(self, step)

    def start(self, step: int, room: Room) -> None:
        """Prepare micro-batches that fit into ``room``, from ``step`` on."""
        self._room = room
        order = _Order(self._samples, step, room, self._share)
        self._batches = iter(DataLoader(_Asked(self._samples), batch_sampler=order, **self._options))

    def take(self, step: int) -> Iterator[tuple[bool, Batch]]:
        """(whether it is the last, micro-batch) of ``step``, the step after the last that was taken."""
        count = len(micro_batches(self._samples, step, self._room, self._share))
        for place in range(count):
            batch = next(self._batches)
            if isinstance(batch, UserError):
                raise batch
            yield place == count - 1, batch

    def supervised(self, step: int) -> int:
        """Supervised tokens of the global batch, over all processes; raises :class:`UserError` if there are none."""
        count = sum(int(self._samples.row(position)["supervised"]) for position in self._samples.positions(step))
        if not count:
            raise UserError(f"nothing in the batch of step {step + 1} is to be learnt", "look at the answers")
        return count


@dataclass(frozen=True)
class Step:
    """An optimizer step, as the Trainer passes it on."""

    loader: Loader
    number: int


class _Asked(Dataset[dict[str, Any] | UserError]):
    """Samples, or what is wrong with them: an exception would leave a worker process as the text of its traceback."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def __getitem__(self, position: int) -> dict[str, Any] | UserError:
        try:
            return self._samples[position]
        except UserError as error:
            return error


class _Told:
    """Packs samples, unless one of them is an error."""

    def __init__(self, packer: Packer) -> None:
        self._packer = packer

    def __call__(self, samples: Sequence[Any]) -> Batch | UserError:
        return next((sample for sample in samples if isinstance(sample, UserError)), None) or self._packer(samples)


class Packer:
    """Puts samples one after another, without padding; pictures in the number format ``dtype``."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def __call__(self, samples: Sequence[dict[str, Any]]) -> Batch:
        """``input_ids``, ``position_ids`` (1, tokens); ``supervised``, ``targets`` (supervised tokens,);
        ``image_places`` (picture tokens,); ``cu_seqlens`` (samples + 1,), ``places``, ``slots``, ``max_length``,
        ``table``, as vlmflow.training.attention takes them; ``pixel_values`` or ``features`` of all pictures.
        """
        lengths = [len(sample["input_ids"]) for sample in samples]
        starts = np.concatenate(([0], np.cumsum(lengths)))
        longest = max(lengths)
        max_length = longest if min(lengths) == longest else -(-longest // _ROUNDED) * _ROUNDED
        places = torch.cat([torch.arange(length) + row * max_length for row, length in enumerate(lengths)])
        slots = torch.full((len(lengths) * max_length,), -1)
        slots[places] = torch.arange(len(places))
        labels = [sample["labels"][1:] for sample in samples]
        learnt = [(label != IGNORED).nonzero()[:, 0] for label in labels]
        batch = {
            "input_ids": torch.cat([sample["input_ids"] for sample in samples])[None],
            "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
            "supervised": torch.cat([at + int(start) for at, start in zip(learnt, starts, strict=False)]),
            "targets": torch.cat([label[at] for label, at in zip(labels, learnt, strict=True)]),
            "image_places": torch.cat(
                [sample["image_places"] + int(start) for sample, start in zip(samples, starts, strict=False)]
            ),
            "cu_seqlens": torch.tensor(starts, dtype=torch.int32),
            "places": places,
            "slots": slots,
            "max_length": max_length,
            "table": len(lengths) * max_length**2 <= _FULL * sum(length**2 for length in lengths),
        }
        for name in ("pixel_values", "features"):
            pictures = [sample[name] for sample in samples if name in sample]
            if pictures:
                batch[name] = torch.cat(pictures).to(self._dtype)
        return batch
