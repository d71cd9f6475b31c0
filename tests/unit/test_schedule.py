"""The order of samples depends on seed, epoch and position alone."""

from __future__ import annotations

import bisect
import itertools
import math
import pickle
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from vlmflow.errors import UserError
from vlmflow.training.schedule import Schedule, _epoch

GROUPS = st.lists(st.tuples(st.integers(1, 40), st.floats(0.01, 4)), min_size=1, max_size=4)
MIX = st.lists(st.tuples(st.integers(1, 40), st.floats(0.05, 4), st.floats(0.01, 100)), min_size=1, max_size=5)
SEEDS = st.integers(0, 2**32)


def frozen(sizes: list[int], repeat: list[int], epochs: int, seed: int) -> Iterator[tuple[int, int]]:
    """The order that the published figures were made with: whole repeats, before there were fractions and weights."""
    ends = list(itertools.accumulate(size * times for size, times in zip(sizes, repeat, strict=True)))
    for epoch in range(epochs):
        for index in np.random.default_rng([seed, epoch]).permutation(ends[-1]).tolist():
            group = bisect.bisect_right(ends, index)
            yield group, (index - (ends[group - 1] if group else 0)) % sizes[group]


def epoch_counts(schedule: Schedule, epoch: int) -> Counter[tuple[int, int]]:
    size = schedule.epoch_size
    return Counter(schedule[position] for position in range(epoch * size, (epoch + 1) * size))


def group_counts(schedule: Schedule) -> list[int]:
    groups = Counter(group for group, _ in epoch_counts(schedule, 0).elements())
    return [groups[group] for group in range(len(groups))]


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 6)), min_size=1, max_size=4), SEEDS)
@example([(300, 1), (40, 10)], 0)  # numbers of one, two and four bytes are shuffled alike
@example([(70_000, 1)], 5)
@settings(max_examples=60, deadline=None)
def test_whole_repeats_without_weights_keep_their_order(groups: list[tuple[int, int]], seed: int) -> None:
    sizes, repeat = [size for size, _ in groups], [times for _, times in groups]
    assume(sum(sizes))
    schedule = Schedule(sizes, repeat, epochs=2, batch_size=1, seed=seed)
    assert list(schedule) == list(frozen(sizes, repeat, 2, seed))
    floats = Schedule(sizes, [float(times) for times in repeat], epochs=2, batch_size=1, seed=seed)
    assert list(floats) == list(schedule)


def test_the_first_samples_of_a_run_are_written_down() -> None:
    schedule = Schedule([5, 7], [1, 2], epochs=1, batch_size=1, seed=0)
    assert list(schedule)[:6] == [(0, 2), (1, 5), (0, 3), (1, 2), (0, 0), (1, 0)]


def test_each_epoch_sees_every_record_once() -> None:
    schedule = Schedule([5, 7], [1, 1], epochs=3, batch_size=4, seed=0)
    everything = {(0, i) for i in range(5)} | {(1, i) for i in range(7)}
    for epoch in range(3):
        assert {schedule[position] for position in range(epoch * 12, epoch * 12 + 12)} == everything


def test_repeat_takes_each_record_that_often_per_epoch() -> None:
    schedule = Schedule([6, 4], [200, 1], epochs=1, batch_size=1, seed=0)
    counts = Counter(schedule)
    assert set(counts.values()) == {200, 1}
    assert sum(counts.values()) == 6 * 200 + 4 == schedule.epoch_size


@given(GROUPS, SEEDS)
@settings(max_examples=60, deadline=None)
def test_a_fraction_takes_every_record_floor_or_ceil_of_it_per_epoch(
    groups: list[tuple[int, float]], seed: int
) -> None:
    sizes, repeat = [size for size, _ in groups], [times for _, times in groups]
    schedule = Schedule(sizes, repeat, epochs=3, batch_size=1, seed=seed)
    for epoch in range(3):
        counts = epoch_counts(schedule, epoch)
        for group, (size, times) in enumerate(groups):
            per_record = [counts[group, record] for record in range(size)]
            assert {math.floor(times), math.ceil(times)} >= set(per_record)
            assert sum(per_record) == max(1, math.floor(size * times + 0.5))


@pytest.mark.parametrize(("size", "count"), [(size, count) for size in range(1, 13) for count in range(1, size + 4)])
def test_extra_records_are_spread_evenly_over_the_epochs(size: int, count: int) -> None:
    """After any number of epochs every record has come floor or ceil of the mean, and no epoch has too many of one."""
    schedule = Schedule([size], [count / size], epochs=12, batch_size=1, seed=size)
    seen: Counter[tuple[int, int]] = Counter()
    for epoch in range(12):
        counts = epoch_counts(schedule, epoch)
        assert max(counts.values()) <= math.ceil(count / size)
        seen += counts
        mean = (epoch + 1) * schedule.epoch_size / size
        assert {math.floor(mean), math.ceil(mean)} >= {seen[0, record] for record in range(size)}


@pytest.mark.parametrize(("repeat", "epochs"), [(0.5, 2), (0.25, 4), (0.1, 10)])
def test_the_parts_of_successive_epochs_cover_everything_once(repeat: float, epochs: int) -> None:
    schedule = Schedule([3, 100], [1, repeat], epochs=epochs, batch_size=1, seed=1)
    counts = Counter(pair for pair in schedule if pair[0] == 1)
    assert counts == {(1, record): 1 for record in range(100)}


def test_the_halves_are_drawn_anew() -> None:
    """Not the same two halves in turn, and not the same ones with another seed or in another group."""
    schedule = Schedule([100, 100], [0.5, 0.5], epochs=8, batch_size=1, seed=1)
    halves = [frozenset(record for group, record in epoch_counts(schedule, epoch) if group == 0) for epoch in range(8)]
    assert len(set(halves)) == 8
    other_seed = epoch_counts(Schedule([100, 100], [0.5, 0.5], epochs=8, batch_size=1, seed=2), 0)
    other_group = frozenset(record for group, record in epoch_counts(schedule, 0) if group == 1)
    assert halves[0] not in (frozenset(record for group, record in other_seed if group == 0), other_group)


def test_every_record_is_as_likely_as_any_other() -> None:
    """The crossing from one shuffled deck to the next favours none: 3 of 7 records in the third epoch, 700 seeds."""
    counts = Counter(pair for seed in range(700) for pair in epoch_counts(Schedule([7], [3 / 7], 3, 1, seed), 2))
    deviations = [counts[0, record] - 300 for record in range(7)]
    assert sum(deviation**2 for deviation in deviations) / (700 * 3 / 7 * 4 / 7) < 22.5 * 7 / 6  # chi-square, p = 0.001


@pytest.mark.parametrize(("size", "repeat", "samples"), [(3, 0.01, 1), (3, 0.5, 2), (5, 3.5, 18), (10, 1.04, 10)])
def test_parts_round_to_the_nearest_count_and_no_group_vanishes(size: int, repeat: float, samples: int) -> None:
    assert Schedule([size], [repeat], 1, 1, 0).epoch_size == samples


@given(MIX, SEEDS)
@settings(max_examples=100, deadline=None)
def test_weights_share_out_an_epoch_of_the_same_size(groups: list[tuple[int, float, float]], seed: int) -> None:
    sizes, repeat, weights = (list(column) for column in zip(*groups, strict=True))
    schedule = Schedule(sizes, repeat, epochs=2, batch_size=1, seed=seed, weights=weights)
    assert schedule.epoch_size == max(len(sizes), math.floor(float(np.dot(sizes, repeat)) + 0.5))
    shares = [schedule.epoch_size * weight / sum(weights) for weight in weights]
    raised = sum(share < 1 for share in shares)  # these have one sample all the same, which larger groups give up
    counts = epoch_counts(schedule, 1)
    for group, (size, share) in enumerate(zip(sizes, shares, strict=True)):
        per_record = [counts[group, record] for record in range(size)]
        assert max(1, share - 1 - raised) - 1e-9 <= sum(per_record) <= max(1, share + 1) + 1e-9
        assert max(per_record) - min(per_record) <= 1


def test_weights_hold_whatever_the_sizes() -> None:
    schedule = Schedule([1000, 10], [1, 1], epochs=1, batch_size=1, seed=0, weights=[3, 1])
    assert group_counts(schedule) == [758, 252]  # of 1010: 757.5 and 252.5
    counts = epoch_counts(schedule, 0)
    assert {counts[1, record] for record in range(10)} == {25, 26}
    assert {counts[0, record] for record in range(1000)} == {0, 1}


def test_weights_are_relative_and_those_of_the_sizes_change_nothing() -> None:
    plain, weighted, scaled = (
        Schedule([30, 10], [1, 1], 2, 4, seed=3, weights=weights) for weights in (None, [3, 1], [0.75, 0.25])
    )
    assert list(plain) == list(weighted) == list(scaled)


def test_a_small_weight_takes_one_sample_from_the_largest() -> None:
    schedule = Schedule([50, 50, 50], [1, 1, 1], 1, 1, 0, weights=[1e6, 1, 1])
    assert group_counts(schedule) == [148, 1, 1]


def test_nothing_to_train_on_is_an_error() -> None:
    with pytest.raises(UserError, match="no records"):
        Schedule([0, 0], [1, 1], 1, 1, 0)
    with pytest.raises(UserError, match="no records"):
        Schedule([4, 0], [1, 1], 1, 1, 0, weights=[1, 1])


@pytest.mark.parametrize(("epochs", "steps"), [(1, 25), (0.5, 13), (0.001, 1), (2.25, 57)])
def test_fractions_of_an_epoch_round_up_to_whole_steps(epochs: float, steps: int) -> None:
    schedule = Schedule([100], [1], epochs=epochs, batch_size=4, seed=0)
    assert schedule.steps == steps
    assert len(schedule) == steps * 4


def test_epochs_and_seeds_are_shuffled_differently_and_reproducibly() -> None:
    one, same, other = (Schedule([50], [1.5], 2, 10, seed) for seed in (0, 0, 1))
    assert list(one) == list(same)
    assert list(one) != list(other)
    assert list(one)[:75] != list(one)[75:]


def test_a_position_needs_no_history() -> None:
    arguments = ([50, 9], [0.7, 3.5], 4, 10, 3)
    everything = list(Schedule(*arguments))
    for position in (200, 17, 173, 66):
        _epoch.cache_clear()
        assert Schedule(*arguments)[position] == everything[position]


def test_it_travels_to_worker_processes_without_its_permutations() -> None:
    schedule = Schedule([70_000, 5], [1.5, 2], 2, 8, 3, weights=[1, 2])
    before = [schedule[position] for position in range(0, len(schedule), 997)]
    sent = pickle.dumps(schedule)
    assert len(sent) < 1000
    assert [pickle.loads(sent)[position] for position in range(0, len(schedule), 997)] == before


def test_an_epoch_of_millions_takes_four_bytes_a_sample() -> None:
    schedule = Schedule([1_000_000, 3], [2.5, 10], 1, 8, 0)
    assert schedule[0] is not None
    assert _epoch(schedule._sizes, schedule._counts, 0, 0).nbytes == 4 * schedule.epoch_size


def test_positions_outside_are_errors() -> None:
    for position in (4, -1):
        with pytest.raises(IndexError):
            Schedule([4], [1], 1, 4, 0)[position]
