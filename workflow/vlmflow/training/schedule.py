"""Which record comes when: a function of (seed, epoch, position), so that a resumed run replays nothing."""

from __future__ import annotations

import bisect
import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np

from vlmflow.errors import UserError


class Schedule(Sequence[tuple[int, int]]):
    """The whole training run as a sequence of (group, record) pairs.

    A group is what shares one ``repeat``, ``sizes`` the number of its records. Each epoch is a permutation in which
    every record of a group comes ``repeat`` times. A fraction is dealt out: with 3.5 every record comes three times and
    half of them, others in the next epoch, once more. A group that has records never vanishes. ``weights`` share out
    an epoch of the same size anew, whatever the sizes of the groups.

    A fractional number of epochs ends inside one. The length is a whole number of global batches, so that every
    optimizer step sees ``batch_size`` samples. Raises :class:`UserError` when there is nothing to take.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        repeat: Sequence[float],
        epochs: float,
        batch_size: int,
        seed: int,
        weights: Sequence[float] | None = None,
    ) -> None:
        self._sizes = tuple(sizes)
        self._counts = _rounded(sizes, repeat) if weights is None else _shares(sizes, repeat, weights)
        self._ends = list(itertools.accumulate(sizes))
        self._seed = seed
        self.batch_size = batch_size
        self.epoch_size = sum(self._counts)
        if not self.epoch_size:
            raise UserError("no records: there is nothing to train on")
        self.steps = max(1, math.ceil(epochs * self.epoch_size / batch_size))
        self._length = self.steps * batch_size

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, position: int) -> tuple[int, int]:  # type: ignore[override]
        if not 0 <= position < self._length:
            raise IndexError(position)
        epoch, place = divmod(position, self.epoch_size)
        record = int(_epoch(self._sizes, self._counts, self._seed, epoch)[place])
        group = bisect.bisect_right(self._ends, record)
        return group, record - self._ends[group] + self._sizes[group]


def _rounded(sizes: Sequence[int], repeat: Sequence[float]) -> tuple[int, ...]:
    """Samples of an epoch from each group: the nearest to size x repeat, one at least where there are records."""
    return tuple(max(min(size, 1), _round(size * times)) for size, times in zip(sizes, repeat, strict=True))


def _shares(sizes: Sequence[int], repeat: Sequence[float], weights: Sequence[float]) -> tuple[int, ...]:
    """Samples of an epoch from each group, by largest remainder: their sum is that of size x repeat, rounded.

    Each is within one of its share, unless groups with a smaller share than one sample get theirs from the largest.
    """
    if not all(sizes):
        raise UserError("no records in one of the data sets that have a weight", "leave it out of the mix")
    total = max(len(sizes), _round(sum(size * times for size, times in zip(sizes, repeat, strict=True))))
    whole = math.fsum(weights)
    shares = [total * (weight / whole) for _, weight in zip(sizes, weights, strict=True)]
    counts = [max(1, math.floor(share)) for share in shares]
    while missing := total - sum(counts):
        step = 1 if missing > 0 else -1
        open_groups = [group for group, count in enumerate(counts) if count + step]
        counts[max(open_groups, key=lambda group: step * (shares[group] - counts[group]))] += step
    return tuple(counts)


def _round(number: float) -> int:
    return number if isinstance(number, int) else math.floor(number + 0.5)


@functools.lru_cache(maxsize=2)  # of the module: a schedule that is sent to a worker process stays small
def _epoch(sizes: tuple[int, ...], counts: tuple[int, ...], seed: int, epoch: int) -> np.ndarray:
    """(samples,) the records of an epoch in their order, numbered through all groups."""
    records = np.empty(sum(counts), np.min_scalar_type(sum(sizes)))
    start = first = 0
    for group, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        times, extra = divmod(count, max(size, 1))
        part = records[start : start + count]
        part[: times * size].reshape(times, size)[:] = np.arange(first, first + size)
        part[times * size :] = first + _dealt(size, extra, seed, group, epoch)
        start, first = start + count, first + size
    np.random.default_rng([seed, epoch]).shuffle(records)
    return records


def _dealt(size: int, count: int, seed: int, group: int, epoch: int) -> np.ndarray:
    """``count`` < ``size`` different records: the ``epoch``-th hand from one shuffled deck of them all after another.

    So after any number of epochs no record has come more than once more often than another.
    """
    if count > size // 2:  # deal who stays out, so that a hand is at most half a deck
        stays = np.ones(size, bool)
        stays[_dealt(size, size - count, seed, group, epoch)] = False
        return np.flatnonzero(stays)
    if not count:
        return np.empty(0, np.int64)
    deck, start = divmod(epoch * count, size)
    hand = _deck(size, count, seed, group, deck)[start : start + count]
    missing = count - len(hand)
    return np.append(hand, _deck(size, count, seed, group, deck + 1)[:missing]) if missing else hand


def _deck(size: int, count: int, seed: int, group: int, deck: int) -> np.ndarray:
    """A shuffled deck whose first hand, begun with the last cards of the deck before, holds none of those twice.

    They come late in this deck, but not among its own last cards: these depend on no other deck, so that no history
    is needed. There are always enough others, as a hand is at most half a deck.
    """
    cards, bottom = _shuffled(size, seed, group, deck), size - (deck + 1) * size % count
    late = np.zeros(size, bool)
    if begun := deck * size % count:
        late[_shuffled(size, seed, group, deck - 1)[-begun:]] = True
    late = late[cards[:bottom]]
    return np.concatenate((cards[:bottom][~late], cards[:bottom][late], cards[bottom:]))


def _shuffled(size: int, seed: int, group: int, deck: int) -> np.ndarray:
    # The third number is never 0: numpy draws the same from [seed, deck, 0] as from [seed, deck], an epoch's order.
    return np.random.default_rng([seed, deck, group + 1]).permutation(size)
