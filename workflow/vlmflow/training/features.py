"""What a frozen vision tower makes of each picture, kept on disk, so that it sees every picture once.

A picture is known by the hash of its file and the number of tiles it may have; the folder by a hash of the tower and of
how pictures are prepared. The pictures of a run are always shared out to the same blocks (files), so that a fill which
was killed goes on, and ends in the same bytes.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import itertools
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed
from torch.utils.data import DataLoader, Dataset

from vlmflow.data.read import load_pictures
from vlmflow.data.records import Record
from vlmflow.files import read_manifest, sha256_json
from vlmflow.fingerprint import fingerprint
from vlmflow.models import families
from vlmflow.models.families import family_of, family_of_model
from vlmflow.training.feature_blocks import Blocks
from vlmflow.training.options import Execution
from vlmflow.training.samples import Samples

_log = logging.getLogger(__name__)
_BLOCK_PICTURES = 64
_BLOCK_BYTES = 1 << 26
_BATCH_TILES = 16  # a forward pass of CLIP-L/336 or InternViT-300M with so many fills a GPU, in less than 1 GB
_PAYS = 1.9  # uses of a picture in the run from which it is kept
_FREE_SHARE = 0.1  # of the free disk, where no limit is given
_REPORT_SECONDS = 60.0
_PREPARED = ("config.json", "processor_config.json", "preprocessor_config.json")


def tower_hash(model: Path, parts: Sequence[Path] = ()) -> str:
    """Hash of all that features depend on besides the picture: weights, configuration, code and its libraries.

    ``model`` is the manifest of the base model, ``parts`` those of artefacts whose ``vision.safetensors`` replaces its
    tower. The language model's weights are in the same files and count too.
    """
    files = read_manifest(model)["files"]
    used = {name: entry["sha256"] for name, entry in files.items() if name in _PREPARED or name.endswith("safetensors")}
    towers = [read_manifest(part)["files"].get("vision.safetensors", {}).get("sha256") for part in parts]
    versions = [importlib.metadata.version(name) for name in ("torch", "transformers", "pillow")]
    code = fingerprint(Path(families.__file__))
    return sha256_json({"files": used, "parts": [tower for tower in towers if tower], "code": [code, *versions]})


def place_of(tower: str, dtype: torch.dtype) -> str:
    """Name of the folder for features of a tower, in a number format."""
    return sha256_json([tower, str(dtype)])[:16]


class _Pictures(Dataset[torch.Tensor]):
    """The distinct pictures of a run, in the order of their keys; item ``numbers`` is what the tower sees of some."""

    def __init__(self, samples: Samples, processor: Any) -> None:
        family = family_of(processor)
        found: dict[str, tuple[int, int, int, int, int]] = {}
        uses = 0
        for dataset, index in samples.with_pictures():
            record = samples.records[dataset][index]
            tile_limit = samples.tile_limit(dataset, index)
            limit = family.picture_limit(processor, len(record.images), tile_limit)
            uses += len(record.images)
            for place, image in enumerate(record.images):
                if (key := _key(image.sha256, limit)) not in found:
                    tiles = family.tiles(processor, [(image.width, image.height)], limit)[0]
                    found[key] = dataset, index, place, limit, tiles
        self.keys = np.array(sorted(found), dtype="S")
        self.places = np.array([found[key] for key in sorted(found)], np.int64).reshape(-1, 5)
        self.tiles = self.places[:, 4]
        self.uses = uses * len(samples) / max(1, sum(len(records) for records in samples.records))
        self.processor, self._records = processor, samples.records

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, numbers: list[int]) -> torch.Tensor:
        return torch.cat([self._pixel_values(number) for number in numbers])

    def _pixel_values(self, number: int) -> torch.Tensor:
        dataset, index, place, limit, _ = map(int, self.places[number])
        record = self._records[dataset][index]
        pictures = load_pictures(Record(record.id, (record.images[place],), ()))
        return family_of(self.processor).pixel_values(self.processor, pictures, limit)


class FeatureCache:
    """The features of all pictures of a run; :meth:`load` works in any process once :meth:`fill` is done."""

    def __init__(self, folder: Path, pictures: _Pictures, dtype: torch.dtype, tile_bytes: int) -> None:
        self._pictures, self._dtype, self._bytes = pictures, dtype, pictures.tiles * tile_bytes
        self._blocks = Blocks(folder, pictures.keys)

    @classmethod
    def open(
        cls, folder: Path, model: Any, processor: Any, samples: Samples, execution: Execution, tower: str
    ) -> FeatureCache | None:
        """The cache below ``folder`` for the frozen tower of ``model`` (transformers' own class, on its device).

        None where the tower is trained, where pictures come about once (unless all are there already, or
        ``feature_cache_gb`` is given), and where there is no room: ``feature_cache_gb`` for all pictures of the run, or
        a tenth of the free disk for those that are missing. ``tower`` is a :func:`tower_hash`. All processes of a run
        get the same answer.
        """
        weights = list(model.model.vision_tower.parameters())
        limit = None if execution.feature_cache_gb is None else execution.feature_cache_gb * 1e9
        if limit == 0 or any(weight.requires_grad for weight in weights):
            return None
        pictures, dtype = _Pictures(samples, processor), weights[0].dtype
        if not len(pictures):
            return None
        width = model.model.multi_modal_projector.linear_1.in_features
        tile_bytes = family_of(processor).tile_tokens(processor) * width * dtype.itemsize
        cache = cls(folder / place_of(tower, dtype), pictures, dtype, tile_bytes)
        return cache if _same_for_all(cache._worthwhile(limit)) else None

    def fill(self, model: Any, workers: int = 0) -> None:
        """Compute what is missing with the tower of ``model``; the processes of a run share the work.

        ``workers`` processes decode pictures. Raises :class:`UserError` if the disk is full.
        """
        rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self._compute(model, self._unfilled()[rank::world], workers)
        if distributed.is_initialized():
            distributed.barrier()
        self._blocks.find()
        self._compute(model, self._unfilled(), workers)  # what the others wrote to the disk of another machine
        self._blocks.find()

    def load(self, record: Record, tile_limit: int | None) -> torch.Tensor:
        """(tiles, patches, width) of the pictures of a record, which share ``tile_limit`` tiles (the model's if None).

        Features that changed on disk are removed, and a :class:`UserError`: the next start computes them again.
        """
        processor = self._pictures.processor
        limit = family_of(processor).picture_limit(processor, len(record.images), tile_limit)
        return torch.cat([self._blocks.read(_key(image.sha256, limit)) for image in record.images])

    def _worthwhile(self, limit: float | None) -> bool:
        whole, wanted = int(self._bytes.sum()), int(self._bytes[self._blocks.missing].sum())
        existing = next(parent for parent in self._blocks.folder.parents if parent.is_dir())
        free = shutil.disk_usage(existing).free
        room = _FREE_SHARE * free if limit is None else free if whole <= limit else 0
        pays = limit is not None or self._pictures.uses >= _PAYS * len(self._pictures)
        if wanted > room and pays:
            what = f"vision features of {len(self._pictures)} pictures, {whole / 1e9:.1f} GB, are not kept"
            room_for = f"a tenth of {free / 1e9:.1f} GB" if limit is None else f"{min(limit, free) / 1e9:.1f} GB"
            _log.info("%s: there is room for %s (feature_cache_gb)", what, room_for)
        return not wanted or (pays and wanted <= room)

    def _unfilled(self) -> list[list[int]]:
        """The missing pictures of every block; where blocks begin depends on the pictures of the run alone."""
        missing = self._blocks.missing
        if not missing.any():
            return []
        blocks: list[list[int]] = [[]]
        filled = 0
        for number, size in enumerate(self._bytes.tolist()):
            if len(blocks[-1]) == _BLOCK_PICTURES or (blocks[-1] and filled + size > _BLOCK_BYTES):
                blocks.append([])
                filled = 0
            blocks[-1].append(number)
            filled += size
        return [[number for number in block if missing[number]] for block in blocks]

    def _compute(self, model: Any, blocks: list[list[int]], workers: int) -> None:
        blocks = [block for block in blocks if block]
        if not blocks:
            return
        self._blocks.remove_stale()
        numbers = list(itertools.chain.from_iterable(blocks))
        progress = _Progress(len(numbers), int(self._bytes[numbers].sum()))
        batches = [self._batches(block) for block in blocks]
        order = list(itertools.chain.from_iterable(batches))
        own = torch.Generator()  # a fill draws no random numbers that training would draw without it
        seen = iter(DataLoader(self._pictures, None, sampler=order, num_workers=workers, generator=own))
        with _evaluating(model.model.vision_tower):
            for block in batches:
                made: dict[str, torch.Tensor] = {}
                for batch in block:
                    shares = self._features(model, next(seen)).split(self._pictures.tiles[batch].tolist())
                    made |= zip((self._pictures.keys[number].decode() for number in batch), shares, strict=True)
                self._blocks.write(made)
                progress.add(len(made))

    def _batches(self, block: list[int]) -> list[list[int]]:
        """What goes through the tower at once: pictures in their order, as many as have :data:`_BATCH_TILES`."""
        batches: list[list[int]] = [[]]
        for number in block:
            if batches[-1] and self._pictures.tiles[[*batches[-1], number]].sum() > _BATCH_TILES:
                batches.append([])
            batches[-1].append(number)
        return batches

    @torch.no_grad()
    def _features(self, model: Any, pixel_values: torch.Tensor) -> torch.Tensor:
        """As a training step computes them: mixed precision where the frozen weights have 16 bits."""
        where = model.model.vision_tower.device
        with torch.autocast(where.type, self._dtype, enabled=self._dtype != torch.float32):
            return family_of_model(model).features(model, pixel_values.to(where)).to(self._dtype).cpu().contiguous()


class _Progress:
    """Lines in the log: what is computed, how far it is every minute, how long it took."""

    def __init__(self, pictures: int, size: int) -> None:
        self._pictures, self._done = pictures, 0
        self._started = self._said = time.monotonic()
        _log.info("vision features of %d pictures, %.2f GB, are computed once and kept", pictures, size / 1e9)

    def add(self, pictures: int) -> None:
        self._done += pictures
        now = time.monotonic()
        rate = self._done / (now - self._started)
        if self._done == self._pictures:
            _log.info("vision features are kept: %.0f s, %.1f pictures/s", now - self._started, rate)
        elif now - self._said > _REPORT_SECONDS:
            self._said, left = now, (self._pictures - self._done) / rate
            _log.info("vision features: %d of %d pictures, %.0f s left", self._done, self._pictures, left)


@contextlib.contextmanager
def _evaluating(tower: torch.nn.Module) -> Iterator[None]:
    """No dropout inside."""
    training = tower.training
    tower.eval()
    try:
        yield
    finally:
        tower.train(training)


def _key(sha256: str, limit: int) -> str:
    return f"{sha256}-{limit}"


def _same_for_all(answer: bool) -> bool:
    """The answer of the first process: the disk may look fuller to one that looks later."""
    answers = [answer]
    if distributed.is_initialized():
        distributed.broadcast_object_list(answers, src=0)
    return answers[0]
