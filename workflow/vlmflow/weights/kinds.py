"""What a tensor is without its values, and everything that holds tensors by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from vlmflow.errors import UserError


class Kind(NamedTuple):
    """Number format and shape of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size of its values in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class Tensors(Protocol):
    """Tensors by name, whose values are read only when asked for."""

    @property
    def kinds(self) -> Mapping[str, Kind]:
        """Name -> kind of every tensor."""

    def read(self, name: str) -> torch.Tensor:
        """The values, on the CPU; the caller may change them in place."""


class Span(NamedTuple):
    """Where the bytes of a tensor lie in a file, little-endian and row-major."""

    file: Path
    offset: int


class State:
    """Tensors that are in memory already."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors
        self.kinds = {name: Kind(value.dtype, tuple(value.shape)) for name, value in tensors.items()}

    def read(self, name: str) -> torch.Tensor:
        """A copy of the tensor, contiguous."""
        return self._tensors[name].detach().cpu().clone(memory_format=torch.contiguous_format)


class Joined:
    """Several sources under one roof: the names of each get its prefix.

    Raises :class:`UserError` if two tensors end up with the same name.
    """

    def __init__(self, parts: Mapping[str, Tensors]) -> None:
        self._places: dict[str, tuple[Tensors, str]] = {}
        self.kinds: dict[str, Kind] = {}
        for prefix, part in parts.items():
            for name, kind in part.kinds.items():
                if prefix + name in self.kinds:
                    raise UserError(f"two tensors of the name {prefix}{name}")
                self.kinds[prefix + name] = kind
                self._places[prefix + name] = part, name

    def read(self, name: str) -> torch.Tensor:
        """The tensor, from the source that has it."""
        part, own = self._places[name]
        return part.read(own)

    def span(self, name: str) -> Span | None:
        """Where its bytes lie, if the source knows."""
        part, own = self._places[name]
        return span_of(part, own)


def span_of(tensors: Tensors, name: str) -> Span | None:
    """Where the bytes of a tensor lie in a file; None for one that is computed or in memory."""
    find = getattr(tensors, "span", None)
    return find(name) if find is not None else None
