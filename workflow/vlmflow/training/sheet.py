"""A contact sheet of the tiles of one sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from vlmflow.models.tiling import tile_grid

_SIDE, _GAP, _LINE, _WIDTH = 192, 4, 24, 1_200  # pixels: of a tile, between tiles, a caption, the sheet
_MOST = 24  # pictures that are drawn
_INK = (128, 128, 128, 255)  # legible on white and on black


def tile_pictures(image_processor: Any, pixel_values: torch.Tensor) -> list[Image.Image]:
    """(tiles, 3, height, width) as pictures again: scaling and normalisation undone."""
    values = pixel_values.float()
    if image_processor.do_normalize:
        mean, std = (
            torch.tensor(part).view(3, 1, 1) for part in (image_processor.image_mean, image_processor.image_std)
        )
        values = values * std + mean
    if image_processor.do_rescale:
        values = values / image_processor.rescale_factor
    pixels = values.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    return [Image.fromarray(tile.numpy()) for tile in pixels]


def draw_sheet(sizes: Sequence[tuple[int, int]], numbers: Sequence[int], tiles: Sequence[Image.Image]) -> Image.Image:
    """All tiles, those of a picture as they lie in it, with a caption each; the ground is transparent.

    ``sizes``: width and height of each picture in pixels; ``numbers``: its tiles, a thumbnail included.
    """
    rest, blocks = iter(tiles), []
    for number, (size, count) in enumerate(zip(sizes, numbers, strict=True), start=1):
        blocks.append(_block(number, size, [next(rest) for _ in range(count)]))
    shown = blocks[:_MOST] + ([_caption(f"and {len(blocks) - _MOST} more pictures")] if len(blocks) > _MOST else [])
    return _flow(shown)


def _block(number: int, size: tuple[int, int], tiles: list[Image.Image]) -> Image.Image:
    """One picture: a caption, its tiles in their grid, its thumbnail to the right."""
    cut = max(1, len(tiles) - 1)
    columns, rows = tile_grid(*size, cut, min_tiles=cut)
    text = f"picture {number}, {size[0]} x {size[1]} px"
    if len(tiles) > 1:
        text += f": {columns} x {rows} tiles of {tiles[0].width} px and a thumbnail"
    caption = _caption(text)
    side = min(_SIDE, _WIDTH // (columns + 1) - _GAP)
    step = side + _GAP
    width = max(caption.width, step * (columns + (len(tiles) > 1)) + 4 * _GAP)
    block = Image.new("RGBA", (width, _LINE + rows * step + _GAP))
    block.paste(caption, (0, 0))
    for place, tile in enumerate(tiles):
        row, column = divmod(place, columns) if place < cut else (0, columns)
        left = column * step + (2 * _GAP if place >= cut else 0)
        block.paste(_fitted(tile, side), (left, _LINE + row * step))
    return block


def _fitted(tile: Image.Image, side: int) -> Image.Image:
    """``tile`` with its longer side as long as ``side``; a tiny one is enlarged with hard edges."""
    scale = side / max(tile.size)
    filtering = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    return tile.resize((round(tile.width * scale), round(tile.height * scale)), filtering)


def _caption(text: str) -> Image.Image:
    font = ImageFont.load_default(14)
    caption = Image.new("RGBA", (round(font.getlength(text)) + 16, _LINE))
    ImageDraw.Draw(caption).text((0, 3), text, _INK, font)
    return caption


def _flow(blocks: Sequence[Image.Image]) -> Image.Image:
    """The blocks one after the other, in lines of at most the sheet's width."""
    places, left, top, height = [], 0, 0, 0
    for block in blocks:
        if left and left + block.width > _WIDTH:
            left, top, height = 0, top + height, 0
        places.append((left, top))
        left, height = left + block.width, max(height, block.height)
    width = max(x + block.width for (x, _), block in zip(places, blocks, strict=True))
    sheet = Image.new("RGBA", (width, top + height))
    for place, block in zip(places, blocks, strict=True):
        sheet.paste(block, place)
    return sheet
