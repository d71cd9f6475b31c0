"""The same picture is never in two splits, and a further picture moves no other."""

from __future__ import annotations

import hashlib
import random
from collections import Counter

import pytest

from vlmflow.data.split import Splitter

SHARES = {"validation": 0.1, "test": 0.2}


def assign(records: list[list[str]], shares: dict[str, float], seed: int) -> list[str]:
    """The split of each record, given the content hashes of its pictures in hexadecimal."""
    contents = [[bytes.fromhex(pixel.zfill(64)) for pixel in record] for record in records]
    splitter = Splitter(shares, seed)
    for record in contents:
        splitter.tie(record)
    return [splitter.split(record[0]) for record in contents]


def by_hand(pixel: str, shares: dict[str, float], seed: int) -> str:
    u = int.from_bytes(hashlib.sha256(f"{seed}:{pixel:0>64}".encode()).digest()[:4], "big") / 2**32
    if u < 1 - shares["validation"] - shares["test"]:
        return "train"
    return "validation" if u < 1 - shares["test"] else "test"


@pytest.mark.parametrize("seed", [0, 7])
def test_a_picture_falls_where_its_content_says(seed: int) -> None:
    pixels = [f"{index:064x}" for index in range(500)]
    assert assign([[pixel] for pixel in pixels], SHARES, seed) == [by_hand(pixel, SHARES, seed) for pixel in pixels]


def test_shares_are_kept() -> None:
    counts = Counter(assign([[str(index)] for index in range(20_000)], SHARES, 0))
    assert counts["train"] == pytest.approx(14_000, abs=300)
    assert counts["validation"] == pytest.approx(2_000, abs=200)


@pytest.mark.parametrize(("validation", "test", "present"), [(0, 0, {"train"}), (0, 0.5, {"train", "test"})])
def test_a_share_of_zero_is_empty(validation: float, test: float, present: set[str]) -> None:
    splits = assign([[str(index)] for index in range(5_000)], {"validation": validation, "test": test}, 0)
    assert set(splits) == present


@pytest.mark.parametrize("seed", range(20))
def test_no_picture_is_in_two_splits(seed: int) -> None:
    source = random.Random(seed)
    records = [[str(source.randrange(400)) for _ in range(source.choice((1, 1, 1, 2, 3)))] for _ in range(300)]
    splits = assign(records, SHARES, seed)
    sides: dict[str, set[str]] = {}
    for record, split in zip(records, splits, strict=True):
        for pixel in record:
            sides.setdefault(pixel, set()).add(split)
    assert all(len(side) == 1 for side in sides.values())
    assert len(set(splits)) == 3


def test_connected_records_go_where_their_smallest_hash_goes() -> None:
    records = [["c", "b"], ["d", "c"], ["a", "d"], ["e"]]
    assert assign(records, SHARES, 3)[:3] == [by_hand("a", SHARES, 3)] * 3
    assert assign(records, SHARES, 3)[3] == by_hand("e", SHARES, 3)


def test_order_does_not_matter_and_a_further_picture_moves_no_other() -> None:
    records = [[str(index), str(index // 2)] for index in range(100)]
    splits = assign(records, SHARES, 0)
    assert assign(records[::-1], SHARES, 0) == splits[::-1]
    assert assign([*records, ["fff"]], SHARES, 0)[:-1] == splits
