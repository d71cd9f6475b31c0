"""InternVL's dynamic tiling (OpenGVLab/InternVL, internvl/train/dataset.py, ``dynamic_preprocess``)."""

from __future__ import annotations

import functools

TILE = 448
"""Side of a tile in pixels, of all published InternVL models."""


@functools.lru_cache(maxsize=1 << 16)
def tile_grid(width: int, height: int, max_tiles: int, min_tiles: int = 1, size: int = TILE) -> tuple[int, int]:
    """(columns, rows) into which a picture of ``width`` x ``height`` pixels is cut; a tile's side is ``size`` pixels.

    The grid of ``min_tiles`` to ``max_tiles`` tiles whose shape is nearest to the picture's, by |w/h - columns/rows|.
    Of equally near ones a larger wins only if the picture covers more than half of its area.
    """
    best, least = (1, 1), float("inf")
    for columns, rows in _grids(min_tiles, max_tiles):
        distance = abs(width / height - columns / rows)
        if distance < least or (distance == least and width * height > 0.5 * size * size * columns * rows):
            best, least = (columns, rows), distance
    return best


def tile_count(width: int, height: int, max_tiles: int, min_tiles: int = 1, size: int = TILE) -> int:
    """Tiles of a picture, with the thumbnail that is added to more than one."""
    columns, rows = tile_grid(width, height, max_tiles, min_tiles, size)
    return columns * rows + (columns * rows > 1)


def tile_limit(max_tiles: int, pictures: int) -> int:
    """What each of several pictures of a record may be cut into: they share the limit of one."""
    return max(1, max_tiles // max(1, pictures))


@functools.cache
def _grids(min_tiles: int, max_tiles: int) -> tuple[tuple[int, int], ...]:
    """All (columns, rows) within the limits, fewer tiles first, then fewer columns."""
    sides = range(1, max_tiles + 1)
    grids = [(columns, rows) for columns in sides for rows in sides if min_tiles <= columns * rows <= max_tiles]
    return tuple(sorted(grids, key=lambda grid: grid[0] * grid[1]))
