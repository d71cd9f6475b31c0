"""Pictures as tiles, tokens and pixel values, whatever the model's family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from vlmflow.models.families import family_of, internvl

Size = tuple[int, int]
"""Width and height in pixels."""


def cuts_into_tiles(processor: Any) -> bool:
    """Whether pictures become tiles (InternVL); LLaVA has one size for all."""
    return isinstance(processor, internvl.PROCESSOR)


def picture_tiles(processor: Any, sizes: Sequence[Size], max_tiles: int | None = None) -> list[int]:
    """Tiles of each picture of one record; they share ``max_tiles``, the processor's own limit if None."""
    return family_of(processor).tiles(processor, sizes, max_tiles)


def picture_lengths(processor: Any, sizes: Sequence[Size], max_tiles: int | None = None) -> list[int]:
    """Tokens of each picture of one record, without the text that the template writes around them."""
    each = family_of(processor).tile_tokens(processor)
    return [each * tiles for tiles in picture_tiles(processor, sizes, max_tiles)]


def pixel_values(processor: Any, pictures: Sequence[Image.Image], max_tiles: int | None = None) -> torch.Tensor:
    """(tiles, 3, height, width) of the pictures of one record, as many tiles as :func:`picture_tiles` says."""
    return family_of(processor).pixel_values(processor, pictures, max_tiles)
