"""The order of samples depends on seed, epoch and position alone."""

from __future__ import annotations

from collections import Counter

import pytest

from vlmflow.training.schedule import Schedule


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


@pytest.mark.parametrize(("epochs", "steps"), [(1, 25), (0.5, 13), (0.001, 1), (2.25, 57)])
def test_fractions_of_an_epoch_round_up_to_whole_steps(epochs: float, steps: int) -> None:
    schedule = Schedule([100], [1], epochs=epochs, batch_size=4, seed=0)
    assert schedule.steps == steps
    assert len(schedule) == steps * 4


def test_epochs_and_seeds_are_shuffled_differently_and_reproducibly() -> None:
    one, same, other = (Schedule([50], [1], 2, 10, seed) for seed in (0, 0, 1))
    assert list(one) == list(same)
    assert list(one) != list(other)
    assert list(one)[:50] != list(one)[50:]


def test_a_position_needs_no_history() -> None:
    assert Schedule([50], [1], 4, 10, 3)[173] == list(Schedule([50], [1], 4, 10, 3))[173]


def test_positions_outside_are_errors() -> None:
    with pytest.raises(IndexError):
        Schedule([4], [1], 1, 4, 0)[4]
