"""Pictures that look alike, found by their difference hashes without comparing each with each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import numpy as np

_BITS = 64
_SHARED = 3  # blocks of bits that two similar hashes are looked up by
_PAIRS = 1 << 20  # compared at once
_SAY_NOTHING = (0, 2**_BITS - 1)
"""Hashes of pictures without any change of brightness, or a steady one, whatever they show: never alike."""


def similar_pictures(
    held_out: Mapping[str, int], training: Mapping[str, int], distance: int = 3
) -> list[tuple[str, str, int]]:
    """Each held-out picture with a similar one in training: its name, the nearest one's, bits that differ.

    The mappings are name -> 64-bit difference hash. Of ``distance + 3`` blocks of bits at most ``distance`` differ, so
    three are equal: every three are an index (Manku et al. 2007). The nearest is the first of equals.
    """
    asked_names, asked = _informative(held_out)
    known_names, known = _informative(training)
    queries, inverse = np.unique(asked, return_inverse=True)
    hashes, first = np.unique(known, return_index=True)
    best = np.full(len(queries), (distance + 1) << 32, np.uint64)  # distance, then place in training
    for mask in _masks(distance):
        for query, other in _candidates(queries & mask, hashes & mask):
            apart = np.bitwise_count(queries[query] ^ hashes[other]).astype(np.uint64)
            np.minimum.at(best, query, apart << np.uint64(32) | first[other].astype(np.uint64))
    apart, place = (best >> np.uint64(32))[inverse], (best & np.uint64(0xFFFFFFFF))[inverse]
    return [
        (asked_names[index], known_names[int(place[index])], int(apart[index]))
        for index in np.flatnonzero(apart <= distance).tolist()
    ]


def _informative(looks: Mapping[str, int]) -> tuple[list[str], np.ndarray]:
    """Names and hashes without those that say nothing."""
    names = [name for name, look in looks.items() if look not in _SAY_NOTHING]
    return names, np.fromiter((looks[name] for name in names), np.uint64, len(names))


def _masks(distance: int) -> list[np.uint64]:
    """Every three of the blocks, as masks."""
    edges = np.linspace(0, _BITS, distance + _SHARED + 1).round().astype(int).tolist()
    blocks = [(1 << end) - (1 << start) for start, end in itertools.pairwise(edges)]
    return [np.uint64(sum(chosen)) for chosen in itertools.combinations(blocks, _SHARED)]


def _candidates(queries: np.ndarray, hashes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of indices of equal values, at most ``_PAIRS`` at a time."""
    order = np.argsort(hashes)
    values = hashes[order]
    start = np.searchsorted(values, queries, "left")
    ends = np.cumsum(np.searchsorted(values, queries, "right") - start)
    for low in range(0, int(ends[-1]) if len(ends) else 0, _PAIRS):
        pairs = np.arange(low, min(low + _PAIRS, int(ends[-1])))
        query = np.searchsorted(ends, pairs, "right")
        before = np.where(query > 0, ends[query - 1], 0)
        yield query, order[start[query] + pairs - before]
