"""How often 95% intervals hold the truth and tests give a false alarm, on simulated evaluations.

    python benchmarks/interval_coverage.py [--repeats 800] [--resamples 1000] [--jobs 2] [--needed]

`--needed` prints instead how many records show a difference.

A record is answered right where its difficulty, half of it shared by the 1 to 7 questions of its picture, is below a
threshold; graded scores fall off around it. What two checkpoints find hard correlates. Beside each figure stands that
of an evaluation that takes questions about one picture as independent, or has the plain percentile bootstrap.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "workflow"))

from vlmflow.evaluation import statistics
from vlmflow.evaluation.statistics import Array, Interval, difference_interval, mcnemar_test, mean_interval, paired_test

SHARED = 0.5  # part of a question's difficulty that comes from its picture
ALIKE = 0.7  # correlation of what two checkpoints find hard
MOST = 7  # questions about one picture: 1 to 7, 4 on average
COLUMNS = ("single score", "pictures ignored", "difference", "plain bootstrap", "pictures ignored", "test",
           "pictures ignored")  # fmt: skip


Numbers = NDArray[np.intp]


class Setting(NamedTuple):
    """One row: what kind of scores, how many, and the true means before and after."""

    graded: bool
    several: bool
    records: int
    before: float
    after: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=800, help="simulated evaluations for each row")
    parser.add_argument("--resamples", type=int, default=1_000, help="of each bootstrap (the workflow takes 10,000)")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--needed", action="store_true")
    arguments = parser.parse_args()
    if arguments.needed:
        print_needed(arguments.repeats)
    else:
        print_coverage(arguments.repeats, arguments.resamples, arguments.jobs)


def print_coverage(repeats: int, resamples: int, jobs: int) -> None:
    ends = ((0.5, 0.7), (0.9, 0.97))
    rows_of = product((False, True), (False, True), (20, 100, 400), ends)
    settings = [Setting(graded, several, n, *means) for graded, several, n, means in rows_of]
    print(f"| scores | records | pictures | before, after | {' | '.join(COLUMNS)} |")
    print("| --- " + "| ---: " * (len(COLUMNS) + 3) + "|")
    with ProcessPoolExecutor(jobs) as pool:
        rows = pool.map(partial(shares, repeats=repeats, resamples=resamples), settings)
        for setting, (pictures, found) in zip(settings, rows, strict=True):
            cells = ["graded" if setting.graded else "0/1", str(setting.records), f"{pictures:.0f}",
                     f"{setting.before:.0%}, {setting.after:.0%}", *(f"{share:.1%}" for share in found)]  # fmt: skip
            print(f"| {' | '.join(cells)} |", flush=True)


def shares(setting: Setting, repeats: int, resamples: int) -> tuple[float, Array]:
    """Mean number of pictures, and for each of ``COLUMNS`` the share of intervals that hold the truth or of alarms.

    Alarms are of a comparison of two checkpoints that are equally good (at ``setting.before``).
    """
    statistics.RESAMPLES = resamples
    rng = np.random.default_rng(list(map(int, (*setting[:3], 100 * setting.before))))
    true = [truth(end, setting.graded) for end in (setting.before, setting.after)]
    pictures, rows = [], []
    for _ in range(repeats):
        groups = draw_pictures(setting, rng)
        before, after = draw_scores(setting, (setting.before, setting.after), groups, rng)
        one, other = draw_scores(setting, (setting.before, setting.before), groups, rng)
        labels, gained = groups.tolist(), true[1] - true[0]
        rows.append(
            [
                holds(mean_interval(after, labels), true[1]),
                holds(mean_interval(after), true[1]),
                holds(difference_interval(after - before, labels), gained),
                holds(plain_bootstrap(after - before, groups, resamples, rng), gained),
                holds(plain_bootstrap(after - before, np.arange(len(groups)), resamples, rng), gained),
                paired_test(other - one, labels)[0] < 0.05,
                paired_test(other - one)[0] < 0.05,
            ]
        )
        pictures.append(len(set(labels)))
    return float(np.mean(pictures)), np.mean(rows, axis=0)


def print_needed(repeats: int) -> None:
    """Records for a power of 80% (Connor 1987), and the power of McNemar's exact test with as many, simulated."""
    changed = (0.1, 0.2, 0.4)
    print("| difference | " + " | ".join(f"{share:.0%} change" for share in changed) + " |")
    print("| ---: " * (len(changed) + 1) + "|")
    for points in (0.01, 0.02, 0.03, 0.05, 0.1):
        cells = []
        for share in changed:
            n = needed(points, share)
            cells.append(f"{n:,} ({power(n, points, share, repeats):.0%})")
        print(f"| {100 * points:.0f} points | {' | '.join(cells)} |")


def needed(difference: float, changed: float) -> int:
    """Independent 0/1 records that show ``difference`` at the 5% level in 80% of evaluations.

    ``changed`` is the share of records that one checkpoint gets right and the other does not.
    """
    level, often = NormalDist().inv_cdf(0.975), NormalDist().inv_cdf(0.8)
    spread = level * math.sqrt(changed) + often * math.sqrt(changed - difference**2)
    return math.ceil((spread / difference) ** 2)


def power(n: int, difference: float, changed: float, repeats: int) -> float:
    """How often McNemar's exact test finds ``difference``."""
    chances = ((changed + difference) / 2, (changed - difference) / 2, 1 - changed)
    tables = np.random.default_rng(n).multinomial(n, chances, size=repeats)
    return float(np.mean([mcnemar_test(int(wins), int(losses)) < 0.05 for wins, losses, _ in tables]))


def draw_pictures(setting: Setting, rng: np.random.Generator) -> Numbers:
    """The number of the picture of each record."""
    if not setting.several:
        return np.arange(setting.records)
    sizes = rng.integers(1, MOST + 1, size=setting.records)
    return np.repeat(np.arange(setting.records), sizes)[: setting.records]


def draw_scores(setting: Setting, means: Sequence[float], groups: Numbers, rng: np.random.Generator) -> list[Array]:
    """Scores of two checkpoints on the same records."""
    shared = SHARED if setting.several else 0.0
    of_pictures, of_records = correlated(groups[-1] + 1, rng), correlated(len(groups), rng)
    scores = []
    for mean, picture, record in zip(means, of_pictures, of_records, strict=True):
        hard = np.sqrt(shared) * picture[groups] + np.sqrt(1 - shared) * record
        if setting.graded:
            scores.append(graded(mean, np.vectorize(NormalDist().cdf)(hard)))
        else:
            scores.append((hard < NormalDist().inv_cdf(mean)).astype(np.float64))
    return scores


def correlated(size: int, rng: np.random.Generator) -> Array:
    """Two rows of ``size`` standard normal numbers with correlation ``ALIKE``."""
    return rng.multivariate_normal((0, 0), ((1, ALIKE), (ALIKE, 1)), size=size).T


def graded(mean: float, hardness: Array) -> Array:
    """Scores of 0 to 1 that fall from 1 to 0 over half of the range of ``hardness`` (0 to 1), around ``mean``."""
    return np.clip(0.5 + 2 * (mean - hardness), 0, 1)


def truth(mean: float, is_graded: bool) -> float:
    return float(graded(mean, (np.arange(100_000) + 0.5) / 100_000).mean()) if is_graded else mean


def plain_bootstrap(values: Array, groups: Numbers, resamples: int, rng: np.random.Generator) -> Interval:
    """Percentile interval of a mean, without any correction."""
    sums, sizes = np.bincount(groups, values), np.bincount(groups)
    drawn = rng.integers(len(sums), size=(resamples, len(sums)))
    low, high = np.quantile(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1), (0.025, 0.975))
    return float(low), float(high)


def holds(interval: Interval, value: float) -> bool:
    low, high = interval
    return low - 1e-12 <= value <= high + 1e-12


if __name__ == "__main__":
    main()
