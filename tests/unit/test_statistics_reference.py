"""The statistics against second implementations (scipy, statsmodels), on random tables."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from vlmflow.evaluation.statistics import (
    Array,
    bootstrap_interval,
    difference_interval,
    holm_adjusted,
    mcnemar_test,
    mean_interval,
    paired_test,
    sign_flip_test,
    student_quantile,
    wilson_interval,
)

TABLES = [np.random.default_rng(seed).integers(0, 40, size=(2, 2)) for seed in range(25)]


@pytest.mark.parametrize("table", TABLES, ids=str)
def test_mcnemar(table: Array) -> None:
    wins, losses = int(table[0, 1]), int(table[1, 0])
    p_value = mcnemar_test(wins, losses)
    assert p_value == pytest.approx(mcnemar(table, exact=True).pvalue, rel=1e-9)
    if wins + losses:
        assert p_value == pytest.approx(stats.binomtest(wins, wins + losses).pvalue, rel=1e-9)
    differences = np.repeat([1.0, -1.0, 0.0], [wins, losses, int(table[0, 0] + table[1, 1]) + 1])
    assert paired_test(differences)[0] == pytest.approx(p_value)


@pytest.mark.parametrize("n", [1, 7, 30, 227, 5_000])
def test_wilson(n: int) -> None:
    for right in {0, 1, n // 3, n - 1, n}:
        expected = proportion_confint(right, n, alpha=0.05, method="wilson")
        assert wilson_interval(right / n, n) == pytest.approx(expected, abs=1e-9)
        scores = np.repeat([1.0, 0.0], [right, n - right])
        assert mean_interval(scores) == pytest.approx(expected, abs=1e-9)


def sums_by_group(values: Array, groups: Array) -> Array:
    return np.array([values[groups == group].sum() for group in np.unique(groups)])


def permutation_p(sums: Array) -> float:
    """scipy's exact paired permutation test: the sign of each group's sum is arbitrary."""
    found = stats.permutation_test(
        (sums, np.zeros_like(sums)), lambda a, b, axis: np.sum(a - b, axis=axis), vectorized=True,
        permutation_type="samples", n_resamples=np.inf,
    )  # fmt: skip
    return float(found.pvalue)


@pytest.mark.parametrize("seed", range(6))
def test_sign_flips_of_whole_numbers_by_group(seed: int) -> None:
    rng = np.random.default_rng(seed)
    differences = rng.choice([-1.0, 0.0, 1.0], p=[0.2, 0.3, 0.5], size=25)
    groups = rng.integers(0, 9, size=25)
    expected = permutation_p(sums_by_group(differences, groups))
    assert sign_flip_test(differences, groups.tolist()) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_sign_flips_of_graded_scores(seed: int) -> None:
    rng = np.random.default_rng(seed)
    differences = rng.normal(0.2, 0.5, size=24)
    groups = np.repeat(np.arange(12), 2)
    expected = permutation_p(sums_by_group(differences, groups))
    assert sign_flip_test(differences, groups.tolist()) == pytest.approx(expected, abs=0.015)


def confidence_level(groups: int) -> float:
    """The level of the plain percentile interval that Hesterberg's expansion takes for 95%."""
    quantile = np.sqrt(groups / (groups - 1)) * stats.t.ppf(0.975, groups - 1)
    return float(1 - 2 * stats.norm.cdf(-quantile))


@pytest.mark.parametrize("n", [8, 40])
def test_bootstrap(n: int) -> None:
    values = np.random.default_rng(n).exponential(size=n)
    found = stats.bootstrap(
        (values,), np.mean, n_resamples=100_000, confidence_level=confidence_level(n), method="percentile", rng=1
    ).confidence_interval
    assert bootstrap_interval(values) == pytest.approx((found.low, found.high), abs=0.06 * (found.high - found.low))


@pytest.mark.parametrize("graded", [False, True])
def test_bootstrap_of_paired_differences_by_group(graded: bool) -> None:
    rng = np.random.default_rng(3)
    groups = np.sort(rng.integers(0, 15, size=50))
    values = rng.normal(0.1, 0.3, size=50) if graded else rng.choice([-1.0, 0.0, 1.0], p=[0.1, 0.5, 0.4], size=50)
    sums, sizes = sums_by_group(values, groups), sums_by_group(np.ones(50), groups)
    if not graded:  # one win and one loss, each on a picture of its own
        sums, sizes = np.append(sums, [1, -1]), np.append(sizes, [1, 1])
    found = stats.bootstrap(
        (sums, sizes), lambda a, b, axis: a.sum(axis) / b.sum(axis), paired=True, n_resamples=100_000,
        confidence_level=confidence_level(len(sums)), method="percentile", rng=1,
    ).confidence_interval  # fmt: skip
    expected = pytest.approx((found.low, found.high), abs=0.06 * (found.high - found.low))
    assert difference_interval(values, groups.tolist()) == expected


def test_intervals_of_few_groups_are_as_wide_as_students() -> None:
    values = np.random.default_rng(0).normal(size=12)
    low, high = bootstrap_interval(values)
    expected = stats.t.interval(0.95, 11, loc=values.mean(), scale=stats.sem(values))
    assert high - low == pytest.approx(expected[1] - expected[0], rel=0.06)


@pytest.mark.parametrize("freedom", [2, 3, 5, 10, 30, 1_000])
def test_student_quantile(freedom: int) -> None:
    assert student_quantile(0.975, freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=0.01)
    if freedom > 2:
        assert student_quantile(0.975, freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=0.002)


@pytest.mark.parametrize("count", [1, 5, 30])
def test_holm(count: int) -> None:
    p_values = np.random.default_rng(count).beta(0.3, 1, size=count).round(2).tolist()
    assert holm_adjusted(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


def test_holm_of_none() -> None:
    assert holm_adjusted([]) == []
