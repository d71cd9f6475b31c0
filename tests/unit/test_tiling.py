"""InternVL's tiles: the published figures, a plain second implementation, and transformers' own."""

from __future__ import annotations

import itertools
import random
from fractions import Fraction

import pytest
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from vlmflow.models.tiling import tile_count, tile_grid, tile_limit

SIZES = [
    *itertools.product((1, 7, 100, 224, 300, 448, 449, 640, 896, 1000, 1344, 4000), repeat=2),
    *((random.Random(index).randint(1, 5000), random.Random(-index - 1).randint(1, 5000)) for index in range(500)),
]


@pytest.mark.parametrize(
    ("size", "at_12", "at_6"),
    [
        ((640, 480), 13, 7), ((500, 375), 13, 7), ((800, 600), 13, 7), ((1024, 768), 13, 7),
        ((1920, 1080), 9, 3), ((300, 200), 7, 7), ((64, 64), 1, 1), ((448, 448), 1, 1),
    ],
)  # fmt: skip
def test_published_figures(size: tuple[int, int], at_12: int, at_6: int) -> None:
    assert (tile_count(*size, 12), tile_count(*size, 6)) == (at_12, at_6)


@pytest.mark.parametrize(
    ("size", "grid"),
    [((800, 600), (4, 3)), ((600, 800), (3, 4)), ((300, 200), (3, 2)), ((448, 448), (1, 1)), ((1000, 1000), (3, 3)),
     ((634, 634), (2, 2)), ((633, 633), (1, 1)), ((9000, 10), (12, 1))],
)  # fmt: skip
def test_a_larger_grid_of_the_same_shape_needs_a_picture_that_covers_half_of_it(
    size: tuple[int, int], grid: tuple[int, int]
) -> None:
    assert tile_grid(*size, 12) == grid


def plain(width: int, height: int, max_tiles: int, min_tiles: int) -> int | None:
    """Nearest shape by exact fractions; among its multiples the largest of which more than half is covered.

    None where two shapes are equally near: there the published rule depends on how numbers are rounded.
    """
    grids = [
        (columns, rows)
        for columns in range(1, max_tiles + 1)
        for rows in range(1, max_tiles + 1)
        if min_tiles <= columns * rows <= max_tiles
    ]
    nearest = min(abs(Fraction(width, height) - Fraction(*grid)) for grid in grids)
    near = [grid for grid in grids if abs(Fraction(width, height) - Fraction(*grid)) == nearest]
    if len({Fraction(*grid) for grid in near}) > 1:
        return None
    areas = sorted({columns * rows for columns, rows in near})
    covered = [area for area in areas[1:] if 2 * width * height > 448 * 448 * area]
    tiles = max(covered, default=areas[0])
    return tiles + 1 if tiles > 1 else 1


@pytest.mark.parametrize(("max_tiles", "min_tiles"), [(1, 1), (2, 1), (6, 1), (12, 1), (12, 4), (24, 1)])
def test_a_plain_second_implementation_agrees(max_tiles: int, min_tiles: int) -> None:
    expected = {size: plain(*size, max_tiles, min_tiles) for size in SIZES}
    compared = {size: tiles for size, tiles in expected.items() if tiles is not None}
    assert len(compared) > 0.9 * len(expected)
    assert {size: tile_count(*size, max_tiles, min_tiles) for size in compared} == compared


@pytest.mark.parametrize("max_tiles", [1, 6, 12])
def test_transformers_agrees(max_tiles: int) -> None:
    """For one picture; of several, transformers gives each the whole limit, the published training a share."""
    processor = GotOcr2ImageProcessorPil(
        crop_to_patches=True, max_patches=max_tiles, size={"height": 448, "width": 448}
    )
    for width, height in SIZES:
        assert tile_count(width, height, max_tiles) == processor.get_number_of_image_patches(height, width, {})


@pytest.mark.parametrize(("pictures", "limit"), [(0, 12), (1, 12), (2, 6), (5, 2), (12, 1), (13, 1), (40, 1)])
def test_pictures_of_a_record_share_the_limit(pictures: int, limit: int) -> None:
    assert tile_limit(12, pictures) == limit
