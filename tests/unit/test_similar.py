"""Similar pictures by their hashes, against comparing each with each."""

from __future__ import annotations

import numpy as np
import pytest

from vlmflow.data.similar import similar_pictures

ALL = 2**64 - 1


@pytest.mark.parametrize("distance", [0, 1, 3, 5])
def test_as_comparing_each_with_each(distance: int) -> None:
    rng = np.random.default_rng(distance)
    training = {f"t{index}": int(look) for index, look in enumerate(rng.integers(1, 2**63, 200, np.uint64))}
    looks = list(training.values())
    held_out = {}
    for index in range(300):
        bits = rng.choice(64, rng.integers(0, 8), replace=False)
        held_out[f"h{index}"] = looks[index % 200] ^ sum(1 << int(bit) for bit in bits)
    expected = []
    for name, look in held_out.items():
        apart, place = min((int(look ^ other).bit_count(), place) for place, other in enumerate(looks))
        if apart <= distance:
            expected.append((name, f"t{place}", apart))
    assert similar_pictures(held_out, training, distance) == expected
    assert expected


def test_the_nearest_and_then_the_first_is_named() -> None:
    training = {"far": 0b1000111, "same": 0b1000000, "same again": 0b1000000}
    assert similar_pictures({"h": 0b1000000, "i": 0b1000000}, training) == [("h", "same", 0), ("i", "same", 0)]


def test_flat_pictures_are_like_nothing() -> None:
    assert similar_pictures({"a": 0, "b": ALL, "c": 1}, {"d": 0, "e": ALL, "f": 3}) == [("c", "f", 1)]


def test_equal_looks_do_not_multiply() -> None:
    """Each with each would be 90 million pairs."""
    found = similar_pictures({f"h{index}": 3 for index in range(3000)}, {f"t{index}": 1 for index in range(30_000)})
    assert len(found) == 3000
    assert {name for _, name, _ in found} == {"t0"}


@pytest.mark.parametrize(("held_out", "training"), [({}, {}), ({"a": 5}, {}), ({}, {"a": 5})])
def test_nothing_to_compare(held_out: dict[str, int], training: dict[str, int]) -> None:
    assert similar_pictures(held_out, training) == []
