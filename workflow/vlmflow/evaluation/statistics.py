"""How sure a difference is: intervals and tests for paired scores, with records that share a picture kept together.

Several questions about one picture are not independent observations. Every function that takes ``groups`` (one label a
record, the picture) resamples, flips or counts whole groups; without it each record is its own group.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Interval = tuple[float, float]
Groups = Sequence[Hashable] | None

RESAMPLES = 10_000
_CHUNK = 1 << 22  # random numbers drawn at once: 32 MB
_EXACT_COMB = 1_000


def bootstrap_interval(values: Array, groups: Groups = None, level: float = 0.95, seed: int = 0) -> Interval:
    """Percentile bootstrap interval of a mean, resampling groups.

    Efron and Tibshirani 1993, chapter 13; groups: Davison and Hinkley 1997, section 3.8. Groups with equal sum and size
    are interchangeable, so a resample is a multinomial draw of how often each kind comes: the same distribution as
    drawing groups one by one, at a fraction of the cost.
    """
    kinds, counts = np.unique(np.stack(_totals(values, groups), axis=1), axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    share = counts / counts.sum()
    means = []
    for rows in _chunks(RESAMPLES, len(kinds)):
        totals = rng.multinomial(counts.sum(), share, size=rows) @ kinds
        means.append(totals[:, 0] / totals[:, 1])
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)


def wilson_interval(proportion: float, n: float, level: float = 0.95) -> Interval:
    """Score interval of a proportion (Wilson 1927; recommended by Brown, Cai and DasGupta 2001)."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    centre = (proportion + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(proportion * (1 - proportion) / n + z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def effective_size(values: Array, groups: Groups = None) -> float:
    """Number of independent 0/1 records with the same standard error: n over the design effect (Kish 1965).

    At most n. When all scores are equal the design effect is unknown and the number of groups is returned.
    """
    sums, sizes = _totals(values, groups)
    n, mean, count = len(values), float(np.mean(values)), len(sums)
    if count == n:
        return float(n)
    if mean in (0.0, 1.0) or count == 1:
        return float(count)
    variance = count / (count - 1) * float(np.sum((sums - sizes * mean) ** 2)) / n**2
    return min(float(n), mean * (1 - mean) / variance) if variance else float(n)


def mean_interval(values: Array, groups: Groups = None) -> Interval:
    """95% interval of a mean score: Wilson with the effective size for 0/1 scores, bootstrap for others."""
    if is_binary(values):
        return wilson_interval(float(np.mean(values)), effective_size(values, groups))
    return bootstrap_interval(values, groups)


def mcnemar_test(wins: int, losses: int) -> float:
    """Two-sided exact p-value of McNemar's test: binomial(wins + losses, 1/2) (Fagerland, Lydersen and Laake 2013)."""
    n, fewer = wins + losses, min(wins, losses)
    if n <= _EXACT_COMB:
        return min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n)
    return min(1.0, 2 * math.fsum(_halves(n)[: fewer + 1]))


def sign_flip_test(differences: Array, groups: Groups = None, seed: int = 0) -> float:
    """Two-sided p-value of the paired permutation test, in which the sign of each group's difference is arbitrary.

    Exact for whole-numbered differences (0/1 scores), by convolving the distributions of the flipped sums; with one
    record a group that is McNemar's exact test. Otherwise 10,000 random flips (Phipson and Smyth 2010: never 0).
    """
    sums = np.abs(_totals(differences, groups)[0])
    observed = abs(float(np.sum(differences)))
    sizes, counts = np.unique(sums[sums > 0], return_counts=True)
    if len(sizes) == 0:
        return 1.0
    if np.all(sizes == np.round(sizes)):
        return _exact_flips(sizes.astype(int), counts, round(observed))
    rng = np.random.default_rng(seed)
    extreme = 0
    for rows in _chunks(RESAMPLES, len(sizes)):
        flipped = (2 * rng.binomial(counts, 0.5, size=(rows, len(sizes))) - counts) @ sizes
        extreme += int(np.sum(np.abs(flipped) >= observed - 1e-9))
    return (extreme + 1) / (RESAMPLES + 1)


def paired_test(differences: Array, groups: Groups = None) -> tuple[float, str]:
    """p-value of no difference, and the name of the test that suits the scores and the groups."""
    alone = groups is None or len(set(groups)) == len(differences)
    if not bool(np.isin(differences, (-1.0, 0.0, 1.0)).all()):
        return sign_flip_test(differences, groups), "sign-flip permutation test"
    if alone:
        return mcnemar_test(int(np.sum(differences > 0)), int(np.sum(differences < 0))), "McNemar's exact test"
    return sign_flip_test(differences, groups), "exact sign-flip test by picture"


def is_binary(values: Array) -> bool:
    """Whether all scores are 0 or 1."""
    return bool(np.isin(values, (0.0, 1.0)).all())


def _exact_flips(sizes: NDArray[np.int_], counts: NDArray[np.int_], observed: int) -> float:
    """P(|sum of +-size| >= observed); index i of ``distribution`` stands for the sum ``i - top``."""
    distribution, top = np.ones(1), 0
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        step = np.zeros(2 * size * count + 1)
        step[:: 2 * size] = _halves(count)
        distribution, top = np.convolve(distribution, step), top + size * count
    extreme = np.abs(np.arange(-top, top + 1)) >= observed
    return min(1.0, float(np.sum(distribution[extreme])))


def _halves(n: int) -> Array:
    """Probabilities of 0..n successes in n fair tosses."""
    log_factorial = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, n + 1)))))
    return np.exp(log_factorial[n] - log_factorial - log_factorial[::-1] - n * math.log(2))


def _totals(values: Array, groups: Groups) -> tuple[Array, Array]:
    """Sum and number of the values of each group."""
    values = np.asarray(values, dtype=np.float64)
    if len(values) == 0:
        raise ValueError("no values")
    if groups is None:
        return values, np.ones_like(values)
    index = {label: position for position, label in enumerate(dict.fromkeys(groups))}
    positions = np.fromiter((index[label] for label in groups), dtype=np.intp, count=len(values))
    return np.bincount(positions, values).astype(np.float64), np.bincount(positions).astype(np.float64)


def _chunks(rows: int, columns: int) -> Iterator[int]:
    step = max(1, _CHUNK // columns)
    for start in range(0, rows, step):
        yield min(step, rows - start)
