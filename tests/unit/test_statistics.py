import time
from itertools import product

import numpy as np
import pytest

from vlmflow.evaluation import statistics
from vlmflow.evaluation.statistics import (
    bootstrap_interval,
    difference_interval,
    effective_size,
    mcnemar_test,
    mean_interval,
    paired_test,
    sign_flip_test,
    wilson_interval,
)


def test_wilson_of_published_values() -> None:
    """Newcombe (1998), Statistics in Medicine 17:857, table I, method 3."""
    assert wilson_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15 / 148, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson_interval(0 / 20, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(1 / 29, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)
    assert wilson_interval(1.0, 20) == pytest.approx((0.8389, 1.0), abs=5e-5)


def test_mcnemar_by_hand() -> None:
    assert mcnemar_test(0, 0) == 1.0
    assert mcnemar_test(5, 0) == pytest.approx(2 / 32)
    assert mcnemar_test(1, 9) == pytest.approx(2 * (1 + 10) / 1024)
    assert mcnemar_test(4, 4) == 1.0


def test_mcnemar_of_many_records_agrees_with_whole_number_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = mcnemar_test(430, 500)
    monkeypatch.setattr(statistics, "_EXACT_COMB", 0)
    assert mcnemar_test(430, 500) == pytest.approx(exact, rel=1e-10)
    assert mcnemar_test(60_000, 10) == 0.0


def enumerated(sums: list[float]) -> float:
    """The share of all sign patterns that are at least as extreme."""
    flips = [abs(np.dot(signs, sums)) >= abs(sum(sums)) - 1e-9 for signs in product((-1, 1), repeat=len(sums))]
    return float(np.mean(flips))


@pytest.mark.parametrize("seed", range(5))
def test_sign_flips_by_group_agree_with_enumeration(seed: int) -> None:
    rng = np.random.default_rng(seed)
    differences = rng.choice([-1.0, 0.0, 1.0], p=[0.2, 0.2, 0.6], size=30)
    groups = [f"picture {number}" for number in rng.integers(0, 11, size=30)]
    sums = [sum(d for d, g in zip(differences, groups, strict=True) if g == group) for group in set(groups)]
    assert sign_flip_test(differences, groups) == pytest.approx(enumerated(sums), rel=1e-9)


def test_sign_flips_without_groups_are_mcnemar() -> None:
    differences = np.array([1.0] * 30 + [-1.0] * 14 + [0.0] * 9)
    assert sign_flip_test(differences) == pytest.approx(mcnemar_test(30, 14), rel=1e-9)


def test_sign_flips_of_real_scores_agree_with_enumeration() -> None:
    differences = np.random.default_rng(3).normal(0.4, 1.0, size=12)
    assert sign_flip_test(differences) == pytest.approx(enumerated(list(differences)), abs=0.015)
    assert sign_flip_test(np.zeros(4)) == 1.0
    assert sign_flip_test(np.full(60, 0.5)) == pytest.approx(1 / 10_001)


def test_sign_flips_of_large_whole_numbers_take_no_longer() -> None:
    """Error rates of whole words are whole numbers of many sizes."""
    differences = np.random.default_rng(0).integers(-900, 1_000, size=500).astype(float)
    started = time.monotonic()
    p_value = sign_flip_test(differences)
    assert time.monotonic() - started < 5
    assert p_value == pytest.approx(sign_flip_test(differences + 1e-6), abs=0.02)


def test_exact_sign_flips_of_many_records_agree_with_mcnemar() -> None:
    differences = np.repeat([1.0, -1.0], [5_100, 4_900])
    assert sign_flip_test(differences) == pytest.approx(mcnemar_test(5_100, 4_900), rel=1e-9)
    assert 0 <= sign_flip_test(np.ones(5_000)) < 1e-10


@pytest.mark.parametrize("repeats", [1, 40])
def test_random_flips_agree_with_exact_ones(monkeypatch: pytest.MonkeyPatch, repeats: int) -> None:
    differences = np.repeat([3.0, -2.0, 5.0, 1.0, -4.0, -7.0, 6.0], repeats)
    exact = sign_flip_test(differences)
    monkeypatch.setattr(statistics, "_EXACT_FLIPS", 0)
    assert sign_flip_test(differences) == pytest.approx(exact, abs=0.02)


def test_bootstrap_agrees_with_drawing_records_one_by_one() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=40)
    means = values[rng.integers(0, 40, size=(200_000, 40))].mean(axis=1)
    tail = 0.02026  # of 40 records: the normal distribution's share beyond sqrt(40 / 39) times Student's 2.0227
    assert bootstrap_interval(values) == pytest.approx(np.quantile(means, [tail, 1 - tail]), abs=0.015)
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(values) != bootstrap_interval(values, seed=1)


def test_bootstrap_keeps_groups_of_unequal_size_together() -> None:
    rng = np.random.default_rng(1)
    groups = list(np.repeat(np.arange(30), rng.integers(1, 6, size=30)))
    values = np.array([float(group % 3 == 0) for group in groups])
    sums, sizes = np.bincount(groups, values), np.bincount(groups)
    drawn = rng.integers(0, 30, size=(200_000, 30))
    means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    tail = 0.01875  # of 30 groups: the normal distribution's share beyond sqrt(30 / 29) times Student's 2.0452
    assert bootstrap_interval(values, groups) == pytest.approx(np.quantile(means, [tail, 1 - tail]), abs=0.01)


def test_bootstrap_in_chunks_is_seeded_and_close(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(2).normal(size=50)
    whole = bootstrap_interval(values)
    monkeypatch.setattr(statistics, "_CHUNK", 7_000)
    assert bootstrap_interval(values) == pytest.approx(whole, abs=0.02)


def test_effective_size() -> None:
    scores = np.array([1.0, 1.0, 0.0, 0.0] * 10)
    assert effective_size(scores) == 40
    copies = [str(position // 2) for position in range(40)]  # the two records of a picture always agree
    assert effective_size(scores, copies) == pytest.approx(19)  # 20 pictures, less one for the estimated variance
    assert effective_size(np.ones(40), copies) == 20
    opposite = [str(position % 2 + 2 * (position // 4)) for position in range(40)]  # one right and one wrong
    assert effective_size(scores, opposite) == 40


def test_mean_interval_covers_at_its_level() -> None:
    """Simulated pictures with three dependent questions each: about 95% of the intervals hold the truth."""
    rng = np.random.default_rng(0)
    groups = list(np.repeat(np.arange(60), 3))
    held = held_alone = 0
    for _ in range(1_000):
        scores = (rng.random(180) < np.repeat(rng.beta(1.5, 1.0, size=60), 3)).astype(float)  # mean 0.6
        low, high = mean_interval(scores, groups)
        held += low <= 0.6 <= high
        low, high = mean_interval(scores)
        held_alone += low <= 0.6 <= high
    assert 0.93 <= held / 1_000 <= 0.97
    assert held_alone / 1_000 < 0.91


def test_difference_interval_covers_at_its_level() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        differences = rng.choice([-1.0, 0.0, 1.0], p=[0.1, 0.5, 0.4], size=150)
        low, high = difference_interval(differences)
        held += low <= 0.3 <= high
    assert 0.91 <= held / 300 <= 0.99


def test_few_and_equal_answers_do_not_give_an_interval_of_no_width() -> None:
    low, high = difference_interval(np.zeros(20))
    assert (low, high) == pytest.approx((-0.136, 0.136), abs=0.001)
    assert difference_interval(np.ones(5))[0] < 0 < difference_interval(np.ones(8))[0]  # as McNemar's test: 2 / 2**5
    assert difference_interval(np.ones(8))[1] == 1
    assert difference_interval(np.ones(6), ["a", "a", "a", "b", "b", "b"])[0] < 0


def test_fewer_than_four_pictures_tell_nothing_of_the_spread_of_graded_scores() -> None:
    assert difference_interval(np.array([0.25, 0.35]), ["a", "a"]) == (-1, 1)
    assert difference_interval(np.array([1.7, 0.2, 0.3])) == (-1.7, 1.7)
    assert difference_interval(np.array([0.3, 0.4]), scale=10.0) == (-10, 10)
    assert mean_interval(np.array([1.0, 1.0]), ["a", "a"]) == (0, 1)
    assert mean_interval(np.array([0.5, 0.5, 0.7])) == (0, 1)
    assert mean_interval(np.array([3.2])) == (0, 3.2)
    assert mean_interval(np.array([3.2]), scale=10.0) == (0, 10)
    assert mean_interval(np.array([0.5, 0.6, 0.7, 0.8]))[0] > 0.4


def test_few_pictures_widen_the_interval_of_a_score() -> None:
    scores, pictures = np.array([1.0, 1.0, 0.0, 0.0] * 3), list("aabbccddeeff")
    low, high = wilson_interval(0.5, effective_size(scores, pictures))
    assert mean_interval(scores, pictures)[0] < low < high < mean_interval(scores, pictures)[1]


def test_paired_test_names_what_it_did() -> None:
    binary = np.array([1.0, 1.0, 1.0, -1.0, 0.0])
    assert paired_test(binary, list("abcde")) == (mcnemar_test(3, 1), "McNemar's exact test")
    assert paired_test(binary, list("aabbc"))[1] == "exact sign-flip test by picture"
    assert paired_test(binary / 3)[1] == "sign-flip permutation test"


def test_no_values_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="no values"):
        bootstrap_interval(np.array([]))
