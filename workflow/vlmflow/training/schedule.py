"""Which record comes when: a function of (seed, epoch, position), so that a resumed run replays nothing."""

from __future__ import annotations

import bisect
import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np


class Schedule(Sequence[tuple[int, int]]):
    """The whole training run as a sequence of (data set, record) pairs.

    Each epoch is a permutation of all records, each taken ``repeat`` times; a fractional number of epochs ends inside
    one. The length is a whole number of global batches, so that every optimizer step sees ``batch_size`` samples.
    """

    def __init__(self, sizes: Sequence[int], repeat: Sequence[int], epochs: float, batch_size: int, seed: int) -> None:
        self._sizes = sizes
        self._ends = list(itertools.accumulate(size * times for size, times in zip(sizes, repeat, strict=True)))
        self._seed = seed
        self.epoch_size = self._ends[-1]
        self.steps = max(1, math.ceil(epochs * self.epoch_size / batch_size))
        self._length = self.steps * batch_size
        self._permutation = functools.lru_cache(maxsize=2)(self._make_permutation)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, position: int) -> tuple[int, int]:  # type: ignore[override]
        if not 0 <= position < self._length:
            raise IndexError(position)
        epoch, place = divmod(position, self.epoch_size)
        index = int(self._permutation(epoch)[place])
        dataset = bisect.bisect_right(self._ends, index)
        start = self._ends[dataset - 1] if dataset else 0
        return dataset, (index - start) % self._sizes[dataset]

    def _make_permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self._seed, epoch]).permutation(self.epoch_size)
