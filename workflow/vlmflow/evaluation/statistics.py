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
_EXACT_FLIPS = 10_000_000  # cosines of the exact sign-flip test: about half a second
_DRAWS_PER_COUNT = 5  # groups drawn in the time in which a binomial number is
_FEWEST = 4  # groups of which a bootstrap tells anything


def difference_interval(differences: Array, groups: Groups = None, scale: float = 1.0) -> Interval:
    """95% bootstrap interval of a mean paired difference; differences of 0/1 scores get one win and one loss more.

    Each of the two stands on a picture of its own, as Agresti and Min 2005 and Bonett and Price 2012 add them: without,
    twenty equal answers would have an interval of no width. Fewer than four groups of other differences tell too little
    of their spread: the interval is as wide as that of scores from 0 to ``scale``.
    """
    if _all_in(differences, (-1.0, 0.0, 1.0)):
        labels = range(len(differences)) if groups is None else groups
        return bootstrap_interval(np.append(differences, (1.0, -1.0)), [*labels, ("win",), ("loss",)])
    if _number_of_groups(differences, groups) < _FEWEST:
        widest = max(scale, float(np.abs(differences).max()))
        return -widest, widest
    return bootstrap_interval(differences, groups)


def bootstrap_interval(values: Array, groups: Groups = None, level: float = 0.95, seed: int = 0) -> Interval:
    """Percentile bootstrap interval of a mean, resampling groups, expanded so that few groups are covered too.

    Efron and Tibshirani 1993, chapter 13; groups: Davison and Hinkley 1997, section 3.8; expansion: Hesterberg 2015,
    section 5.3 (the percentiles are those that make a symmetric interval as wide as Student's).
    """
    kinds, counts = np.unique(np.stack(_totals(values, groups), axis=1), axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    means = []
    for rows in _chunks(RESAMPLES, int(counts.sum())):
        sums, sizes = _resampled(kinds, counts, rows, rng)
        means.append(sums / sizes)
    tail = _expanded_tail(int(counts.sum()), level)
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


def mean_interval(values: Array, groups: Groups = None, scale: float = 1.0) -> Interval:
    """95% interval of a mean score: Wilson with the effective size for 0/1 scores, bootstrap for others.

    The effective size is itself estimated where groups have several records, and reduced for that as Korn and Graubard
    1998 do. One such group, or fewer than four of graded scores, tell too little of their spread: 0 to ``scale``.
    """
    mean, count = float(np.mean(values)), _number_of_groups(values, groups)
    if is_binary(values) and count == len(values):
        return wilson_interval(mean, count)
    if count < (2 if is_binary(values) else _FEWEST):
        return min(0.0, float(np.min(values))), max(scale, float(np.max(values)))
    if is_binary(values):
        reduced = (NormalDist().inv_cdf(0.975) / student_quantile(0.975, count - 1)) ** 2
        return wilson_interval(mean, effective_size(values, groups) * reduced)
    return bootstrap_interval(values, groups)


def mcnemar_test(wins: int, losses: int) -> float:
    """Two-sided exact p-value of McNemar's test: binomial(wins + losses, 1/2) (Fagerland, Lydersen and Laake 2013)."""
    n, fewer = wins + losses, min(wins, losses)
    if n <= _EXACT_COMB:
        return min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n)
    return min(1.0, 2 * math.fsum(_halves(n)[: fewer + 1]))


def sign_flip_test(differences: Array, groups: Groups = None, seed: int = 0) -> float:
    """Two-sided p-value of the paired permutation test, in which the sign of each group's difference is arbitrary.

    Exact for whole-numbered differences of few sizes (0/1 scores); with one record a group that is McNemar's exact
    test. Otherwise 10,000 random flips (Phipson and Smyth 2010: never 0).
    """
    sums = np.abs(_totals(differences, groups)[0])
    observed = abs(float(np.sum(differences)))
    sizes, counts = np.unique(sums[sums > 0], return_counts=True)
    if len(sizes) == 0:
        return 1.0
    if np.all(sizes == np.round(sizes)) and len(sizes) * float(sizes @ counts) <= _EXACT_FLIPS:
        return _exact_flips(sizes.astype(int), counts, round(observed))
    rng = np.random.default_rng(seed)
    extreme = sum(
        int(np.sum(np.abs(_flipped(sizes, counts, rows, rng)) >= observed - 1e-9))
        for rows in _chunks(RESAMPLES, int(counts.sum()))
    )
    return (extreme + 1) / (RESAMPLES + 1)


def paired_test(differences: Array, groups: Groups = None) -> tuple[float, str]:
    """p-value of no difference, and the name of the test that suits the scores and the groups."""
    alone = _number_of_groups(differences, groups) == len(differences)
    if not _all_in(differences, (-1.0, 0.0, 1.0)):
        return sign_flip_test(differences, groups), "sign-flip permutation test"
    if alone:
        return mcnemar_test(int(np.sum(differences > 0)), int(np.sum(differences < 0))), "McNemar's exact test"
    return sign_flip_test(differences, groups), "exact sign-flip test by picture"


def holm_adjusted(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number, so that the chance of any false alarm keeps its level (Holm 1979)."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def student_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t by its Cornish-Fisher expansion (Abramowitz and Stegun 26.7.5).

    At 0.975 within 1% from 2 degrees of freedom, within 0.2% from 3.
    """
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92_160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))


def is_binary(values: Array) -> bool:
    """Whether all scores are 0 or 1."""
    return _all_in(values, (0.0, 1.0))


def _all_in(values: Array, allowed: Sequence[float]) -> bool:
    return bool(np.isin(values, allowed).all())


def _resampled(kinds: Array, counts: NDArray[np.int_], rows: int, rng: np.random.Generator) -> Array:
    """Sums and sizes, (2, rows), of ``rows`` times as many groups as there are, drawn anew; ``kinds``: sum and size.

    Groups with equal sum and size are interchangeable: where they are many, a draw of how often each kind comes is the
    same as drawing groups one by one, at a fraction of the cost.
    """
    n = int(counts.sum())
    if len(kinds) * _DRAWS_PER_COUNT < n:
        return np.asarray((rng.multinomial(n, counts / n, size=rows) @ kinds).T)
    drawn = rng.integers(n, size=(rows, n), dtype=np.uint32)  # a quarter of the time of 64 bits
    sums, sizes = np.repeat(kinds, counts, axis=0).T
    same_size = bool((sizes == sizes[0]).all())
    return np.stack([sums[drawn].sum(axis=1), np.full(rows, sizes.sum()) if same_size else sizes[drawn].sum(axis=1)])


def _flipped(sizes: Array, counts: NDArray[np.int_], rows: int, rng: np.random.Generator) -> Array:
    """``rows`` sums of all sizes, each with a random sign; as in :func:`_resampled`, equal ones are drawn together."""
    n = int(counts.sum())
    if len(sizes) * _DRAWS_PER_COUNT < n:
        return np.asarray((2.0 * rng.binomial(counts, 0.5, size=(rows, len(sizes))) - counts) @ sizes)
    bits = np.frombuffer(rng.bytes(rows * -(-n // 8)), dtype=np.uint8).reshape(rows, -1)
    return np.asarray((2.0 * np.unpackbits(bits, axis=1, count=n) - 1) @ np.repeat(sizes, counts))


def _expanded_tail(count: int, level: float) -> float:
    """The share to cut off at either end of the bootstrap's means of ``count`` groups."""
    if count == 1:
        return 0.0
    quantile = student_quantile((1 + level) / 2, count - 1)
    return NormalDist().cdf(-math.sqrt(count / (count - 1)) * quantile)


def _exact_flips(sizes: NDArray[np.int_], counts: NDArray[np.int_], observed: int) -> float:
    """P(|sum of +-size| >= observed), within 1e-12: the Fourier transform of the distribution, a product of cosines.

    A sign's transform is the cosine; that of a sum of independent terms is the product of theirs.
    """
    if observed == 0:
        return 1.0
    top = int(sizes @ counts)
    length = 1 << (2 * top).bit_length()
    angles = 2 * np.pi / length * np.arange(length // 2 + 1)
    transform = np.ones(len(angles))
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        transform *= np.cos(size * angles) ** count
    upper = float(np.sum(np.fft.irfft(transform, length)[observed : top + 1]))
    return min(1.0, max(0.0, 2 * upper))


def _halves(n: int) -> Array:
    """Probabilities of 0..n successes in n fair tosses."""
    log_factorial = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, n + 1)))))
    return np.exp(log_factorial[n] - log_factorial - log_factorial[::-1] - n * math.log(2))


def _number_of_groups(values: Array, groups: Groups) -> int:
    return len(values) if groups is None else len(set(groups))


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
