"""Model families: what differs between LLaVA and InternVL when a model runs, one module each.

A family module has the members of :class:`Family`; a new one is added to ``_MODULES``. Language model, projector and
vision tower are called the same in all families of transformers (vlmflow.models.directory), so that freezing, adapters
and merging need nothing from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from vlmflow.errors import UserError
from vlmflow.files import read_json
from vlmflow.models.families import internvl, llava


class Family(Protocol):
    """What a family module provides; ``processor`` is what its own ``load_processor`` returns."""

    MODEL_TYPE: str
    """``model_type`` in config.json."""
    PROCESSOR: type
    """Class of its processors."""

    def load_processor(self, folder: Path) -> Any:
        """Tokenizer and picture processor of a model directory, in an object with ``tokenizer``."""

    def tile_tokens(self, processor: Any) -> int:
        """Tokens of one tile."""

    def tiles(self, processor: Any, sizes: Sequence[tuple[int, int]], max_tiles: int | None) -> list[int]:
        """Tiles of each picture of one record by (width, height) in pixels."""

    def picture_limit(self, processor: Any, pictures: int, max_tiles: int | None) -> int:
        """What each of ``pictures`` pictures of one record may be cut into; alone with this limit it looks the same."""

    def pixel_values(self, processor: Any, pictures: Sequence[Image.Image], max_tiles: int | None) -> torch.Tensor:
        """(tiles, 3, height, width) float32 of the pictures of one record, in order."""

    def features(self, model: Any, pixel_values: torch.Tensor) -> torch.Tensor:
        """(tiles, patches, width) what the projector of ``model`` (transformers' own class) reads of the tiles."""

    def project(self, model: Any, features: torch.Tensor) -> torch.Tensor:
        """(tiles x patches, hidden) embeddings of the picture tokens: ``get_image_features``, bit for bit."""


_MODULES: tuple[Family, ...] = (llava, internvl)


def family_of_directory(folder: Path) -> Family:
    """The family of a model directory; raises :class:`UserError` if it is none."""
    return _named(read_json(folder / "config.json").get("model_type"), folder / "config.json")


def family_of_model(model: Any) -> Family:
    """The family of a loaded model (transformers' own class); raises :class:`UserError` if it is none."""
    return _named(model.config.model_type, None)


def family_of(processor: Any) -> Family:
    """The family that a loaded processor belongs to."""
    return next(module for module in _MODULES if isinstance(processor, module.PROCESSOR))


def _named(model_type: Any, file: Path | None) -> Family:
    for module in _MODULES:
        if model_type == module.MODEL_TYPE:
            return module
    known = ", ".join(module.MODEL_TYPE for module in _MODULES)
    raise UserError(f"a model of type '{model_type}'", f"there is {known}", file=file)
