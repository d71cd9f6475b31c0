"""Checkpoints that bitsandbytes stored in 8 bits (LLM.int8), read as ordinary tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import torch

from vlmflow.errors import UserError
from vlmflow.weights.kinds import Kind, Span, Tensors, span_of
from vlmflow.weights.mapping import listed

SCALE = ".SCB"
FORMAT = ".weight_format"
_STEP = 7.874015718698502e-3
"""1 / 127 as bitsandbytes writes it: the largest 8-bit value stands for the row's largest absolute value (SCB)."""


class Int8:
    """A view of ``tensors`` in which every 8-bit matrix ``X.weight`` is its values times ``X.SCB`` / 127 per row.

    The matrices appear in ``dtype``, other tensors as they are; SCB and weight_format appear no more. Raises
    :class:`UserError` that names the tensors if a scale is missing, without its matrix, or of another size.
    """

    def __init__(self, tensors: Tensors, dtype: torch.dtype, file: Path | None = None) -> None:
        self._tensors = tensors
        self._file = file
        kinds = tensors.kinds
        self.quantised = [name for name, kind in kinds.items() if kind.dtype == torch.int8]
        helpers = {name for name in kinds if name.endswith((SCALE, FORMAT))}
        named = [name for name in self.quantised if name.endswith(".weight")]
        stems = {name.removesuffix(".weight") for name in named}
        rows = {stem: kinds[f"{stem}.weight"].shape[:1] for stem in stems}
        wrong = listed(
            missing=sorted(stem + SCALE for stem in stems if stem + SCALE not in kinds),
            unexpected=sorted(
                {n for n in helpers if n.removesuffix(SCALE).removesuffix(FORMAT) not in stems}
                | (set(self.quantised) - set(named))
            ),
            misshapen=sorted(
                {stem + SCALE for stem in stems if stem + SCALE in kinds and kinds[stem + SCALE].shape != rows[stem]}
                | {name for name in helpers if name.endswith(FORMAT) and math.prod(kinds[name].shape) != 1}
            ),
        )
        if wrong or not stems:
            raise UserError(
                f"broken checkpoint: not in LLM.int8 format: {wrong or 'no matrix is in 8 bits'}",
                "fetch it again, or remove quantization_config from config.json if it is not quantised",
                file=file,
            )
        self.kinds = {
            name: Kind(dtype, kind.shape) if kind.dtype == torch.int8 else kind
            for name, kind in kinds.items()
            if name not in helpers
        }
        self._check_formats(name for name in helpers if name.endswith(FORMAT))

    def read(self, name: str) -> torch.Tensor:
        """The tensor; an 8-bit one multiplied in float32 and rounded once."""
        value = self._tensors.read(name)
        if value.dtype != torch.int8:
            return value
        scale = self._tensors.read(name.removesuffix(".weight") + SCALE)
        return (value * scale.float().unsqueeze(1) * _STEP).to(self.kinds[name].dtype)

    def span(self, name: str) -> Span | None:
        """Where the bytes lie of a tensor that is not in 8 bits."""
        return None if self._tensors.kinds[name].dtype == torch.int8 else span_of(self._tensors, name)

    def _check_formats(self, names: Iterable[str]) -> None:
        for name in names:
            if int(self._tensors.read(name)) != 0:
                raise UserError(
                    f"unsupported checkpoint: {name} says that its matrix lies in a GPU's own order, not by rows",
                    "save the model again with a current bitsandbytes",
                    file=self._file,
                )
