"""Tensors by key on disk, in blocks: safetensors files that are whole or absent, read memory-mapped by any process."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from vlmflow.errors import UserError
from vlmflow.files import sha256_json

_log = logging.getLogger(__name__)
_SUMS = "checksums"
_STALE_SECONDS = 3600.0


class Blocks:
    """The blocks in ``folder``, and which of them holds each of ``keys`` (sorted, different bytes strings)."""

    def __init__(self, folder: Path, keys: np.ndarray) -> None:
        self.folder, self._keys = folder, keys
        self.find()

    def find(self) -> None:
        """Look at the folder again. A block that is cut off is removed, with a line in the log."""
        self._names = sorted(path.name for path in self.folder.glob("*.safetensors"))
        self._block_of = np.full(len(self._keys), -1, np.int64)
        for number, name in enumerate(self._names):
            try:
                with safe_open(self.folder / name, "pt") as block:
                    stored = np.array(list(block.keys()), dtype="S")
            except (SafetensorError, OSError) as error:
                _log.warning("%s: damaged (%s), its pictures are computed again", self.folder / name, error)
                (self.folder / name).unlink(missing_ok=True)
                continue
            places = np.searchsorted(self._keys, stored).clip(max=len(self._keys) - 1)
            self._block_of[places[self._keys[places] == stored]] = number
        _opened.cache_clear()

    @property
    def missing(self) -> np.ndarray:
        """(keys,) bool: which are in no block."""
        return self._block_of < 0

    def read(self, key: str) -> torch.Tensor:
        """The tensor of ``key``. A block whose bytes changed is removed, and a :class:`UserError`."""
        path = self.folder / self._names[self._block_of[np.searchsorted(self._keys, key.encode())]]
        block, sums = _opened(path)
        value: torch.Tensor = block.get_tensor(key)
        if _checksum(value) != sums[key]:
            path.unlink(missing_ok=True)
            raise UserError("damaged on disk, and removed", "start again: it is computed anew", file=path)
        return value

    def write(self, values: dict[str, torch.Tensor]) -> None:
        """Add a block, named by its keys. Raises :class:`UserError` if there is no room."""
        name = sha256_json(sorted(values))[:32]
        part = self.folder / f".{name}.{os.getpid()}.part"
        sums = torch.tensor([_checksum(values[key]) for key in sorted(values)])
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            part.write_bytes(save({**values, _SUMS: sums}))
            part.replace(self.folder / f"{name}.safetensors")
        except OSError as error:
            part.unlink(missing_ok=True)
            advice = "free some disk, or train without kept vision features (feature_cache_gb: 0)"
            raise UserError(f"cannot keep vision features: {error.strerror}", advice, file=self.folder) from error

    def remove_stale(self) -> None:
        """Delete what processes that were killed left half-written."""
        for part in self.folder.glob(".*.part"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - part.stat().st_mtime > _STALE_SECONDS:
                    part.unlink()


def _checksum(value: torch.Tensor) -> int:
    """CRC-32 of the bytes; 6 GB/s."""
    return zlib.crc32(value.view(torch.uint8).numpy())


@functools.lru_cache(maxsize=64)  # in each process; a block that is not among them costs 0.1 ms
def _opened(path: Path) -> tuple[Any, dict[str, int]]:
    """A block, memory-mapped, and the checksum of each tensor in it."""
    block = safe_open(path, "pt")
    keys = sorted(set(block.keys()) - {_SUMS})
    return block, dict(zip(keys, block.get_tensor(_SUMS).tolist(), strict=True))
