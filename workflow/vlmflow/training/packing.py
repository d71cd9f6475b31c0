"""The samples of one optimizer step as packed micro-batches, equally many and nearly equally long for each process."""

from __future__ import annotations

import math
from bisect import bisect_right, insort

import numpy as np

from vlmflow.errors import UserError

_EVEN = 0.01  # micro-batches whose lengths differ by less, of the longest, are left as they are
_EXCHANGES = 64  # at most, in a step: keeps packing far below the time of a step


def pack_step(
    tokens: np.ndarray, tiles: np.ndarray, processes: int, max_tokens: int, max_tiles: int
) -> list[list[list[int]]]:
    """[process][micro-batch] -> indices into the samples of a step, which have ``tokens`` and ``tiles`` (samples,).

    No micro-batch is above ``max_tokens`` or ``max_tiles``, unless a single sample alone is. Every process has equally
    many, none of them empty, as few as best-fit decreasing needs (Johnson et al. 1974; here with two sizes a sample),
    and nearly equally many tokens. Depends on nothing but the arguments. Raises :class:`UserError` when the samples
    cannot be shared out like this: there are fewer than processes, or than micro-batches for each to have as many.
    """
    too_large = (tokens > max_tokens) | (tiles > max_tiles)  # fills a micro-batch alone
    sizes = np.stack([np.where(too_large, max_tokens, tokens), np.where(too_large, max_tiles, tiles)], 1).astype(int)
    room = np.array([max_tokens, max_tiles])
    order = np.argsort(-(sizes / np.maximum(room, 1)).max(1), kind="stable").tolist()
    fewest = _fit(order, sizes, room, count=None) or []
    count = math.ceil(len(fewest) / processes) * processes
    if not 0 < count <= len(tokens):
        raise UserError(
            f"{len(tokens)} samples of a step cannot be shared by {processes} processes",
            "choose a batch_size that is a multiple of the number of GPUs",
        )
    packed = _fit(order, sizes, room, count) or _split(fewest, count, sizes[:, 0])
    if processes > 1:
        _even_out(packed, sizes, max_tiles)
    return _deal(packed, sizes[:, 0], processes)


def _fit(order: list[int], sizes: np.ndarray, room: np.ndarray, count: int | None) -> list[list[int]] | None:
    """Micro-batches, each sample of ``order`` in one that can take it; ``sizes`` (samples, 2) are tokens and tiles.

    ``count`` of them: the one with the fewest tokens, which balances; None if that leads nowhere. Otherwise the one
    with the most tokens, and a new one where there is none, which needs few.
    """
    (max_tokens, max_tiles), pairs = room.tolist(), sizes.tolist()
    packed: list[list[int]] = [[] for _ in range(count or 0)]
    loads = [(0, 0, place) for place in range(count or 0)]  # (tokens, tiles, micro-batch), in increasing order
    for index in order:
        tokens, tiles = pairs[index]
        fitting = range(bisect_right(loads, max_tokens - tokens, key=lambda load: load[0]))
        places = fitting if count else reversed(fitting)
        place = next((place for place in places if loads[place][1] + tiles <= max_tiles), None)
        if place is None:
            if count:
                return None
            packed.append([])
            used = (0, 0, len(packed) - 1)
        else:
            used = loads.pop(place)
        insort(loads, (used[0] + tokens, used[1] + tiles, used[2]))
        packed[used[2]].append(index)
    return packed


def _split(packed: list[list[int]], count: int, tokens: np.ndarray) -> list[list[int]]:
    """``count`` micro-batches, made of fewer by halving the longest that has several samples."""
    while len(packed) < count:
        longest = max((each for each in packed if len(each) > 1), key=lambda each: tokens[each].sum())
        packed = [each for each in packed if each is not longest] + [longest[::2], longest[1::2]]
    return packed


def _even_out(packed: list[list[int]], sizes: np.ndarray, max_tiles: int) -> None:
    """Exchange samples, or move one, between the longest and the shortest micro-batch while that brings them closer."""
    tokens, tiles = (np.append(column, 0) for column in sizes.T)  # the last is no sample: what a move gets in return
    loads = np.array([sizes[each].sum(0) for each in packed])
    for _ in range(_EXCHANGES):
        longest, shortest = loads[:, 0].argmax(), loads[:, 0].argmin()
        gap = loads[longest, 0] - loads[shortest, 0]
        if gap <= _EVEN * loads[longest, 0]:
            return
        given, taken = np.array(packed[longest]), np.array([*packed[shortest], -1])
        shift = tokens[given][:, None] - tokens[taken]
        more = tiles[given][:, None] - tiles[taken]
        fits = (loads[shortest, 1] + more <= max_tiles) & (loads[longest, 1] - more <= max_tiles)
        distance = np.where(fits & (shift > 0) & (shift < gap), abs(2 * shift - gap), gap)
        place = np.unravel_index(distance.argmin(), distance.shape)
        if distance[place] >= gap:
            return
        give, take = int(given[place[0]]), int(taken[place[1]])
        packed[longest] = [index for index in packed[longest] if index != give] + [take] * (take >= 0)
        packed[shortest] = [index for index in packed[shortest] if index != take] + [give]
        loads[[longest, shortest]] += np.array([[-1], [1]]) * [shift[place], more[place]]


def _deal(packed: list[list[int]], tokens: np.ndarray, processes: int) -> list[list[list[int]]]:
    """Deal micro-batches out by decreasing length: alike in each round, the longest to who has least so far."""
    longest_first = sorted(((int(tokens[each].sum()), sorted(each)) for each in packed), reverse=True)
    dealt: list[list[list[int]]] = [[] for _ in range(processes)]
    totals = [0] * processes
    for start in range(0, len(packed), processes):
        least_first = sorted(range(processes), key=totals.__getitem__)
        for process, (length, each) in zip(least_first, longest_first[start : start + processes], strict=True):
            dealt[process].append(each)
            totals[process] += length
    return dealt
