"""Pictures that training and an evaluation share, by content."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vlmflow.data.leakage import check_leakage
from vlmflow.data.pictures import ImageFacts, Picture, read_pictures, write_pictures
from vlmflow.errors import UserError


def data(root: Path, name: str, split: str = "train", **looks: int) -> Path:
    """A data set whose pictures have the given names as content; returns its manifest."""
    made = [
        (Picture(f"{name}/{key}.png", key, f"{look:016x}", split), ImageFacts(8, 8, b"", b"", look))
        for key, look in looks.items()
    ]
    (root / name).mkdir()
    write_pictures(root / name / "pictures.jsonl", made)
    return root / name / "manifest.json"


def evaluation(manifest: Path, split: str = "test", leakage: str = "error") -> dict[str, Any]:
    return {"data": str(manifest), "split": split, "leakage": leakage}


def test_pictures_round_trip(tmp_path: Path) -> None:
    picture = Picture("a b/ä.png", "1" * 64, "f" * 16, "train")
    write_pictures(tmp_path / "p.jsonl", [(picture, ImageFacts(3, 4, b"", b"", 0))] * 2)
    assert list(read_pictures(tmp_path / "p.jsonl")) == [picture, picture]
    (tmp_path / "p.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"p\.jsonl: line 1 is no picture"):
        list(read_pictures(tmp_path / "p.jsonl"))


def test_every_leaking_evaluation_is_named(tmp_path: Path) -> None:
    train = [data(tmp_path, "one", x=5, y=6), data(tmp_path, "two", z=7)]
    first = data(tmp_path, "first", "test", q=1 << 40, y=6, z=7)
    second = data(tmp_path, "second", "test", x=5)
    good = data(tmp_path, "good", "test", w=1 << 50)
    asked = {"e1": evaluation(first), "e2": evaluation(second), "e3": evaluation(good)}
    with pytest.raises(UserError) as error:
        check_leakage(train, asked, tmp_path / "out.json")
    message = str(error.value)
    assert "evaluation e1: 2 of 3 pictures (first/y.png = one/y.png, first/z.png = two/z.png)" in message
    assert "evaluation e2: 1 of 1 pictures (second/x.png = one/x.png)" in message
    assert "e3" not in message
    assert "same split seed and shares" in message
    assert not (tmp_path / "out.json").exists()


def test_report_only_counts_and_similar_pictures_never_stop(tmp_path: Path) -> None:
    train = [data(tmp_path, "one", x=0b1111 << 20, y=6 << 40)]
    test = data(tmp_path, "test", "test", x=0b1111 << 20, near=0b0111 << 20, far=0b1111 << 60)
    near = data(tmp_path, "near", "test", near=0b0111 << 20)
    check_leakage(train, {"r": evaluation(test, leakage="report"), "n": evaluation(near)}, tmp_path / "o" / "out.json")
    found = json.loads((tmp_path / "o" / "out.json").read_text())
    assert found["training_pictures"] == 2
    assert found["evaluations"]["r"] == {
        "split": "test", "leakage": "report", "pictures": 3,
        "identical": {"count": 1, "first": [{"evaluation": "test/x.png", "training": "one/x.png"}]},
        "near_identical": {
            "count": 1, "first": [{"evaluation": "test/near.png", "training": "one/x.png", "bits_apart": 1}]
        },
    }  # fmt: skip
    assert found["evaluations"]["n"]["identical"]["count"] == 0


def test_only_the_splits_in_question_are_compared(tmp_path: Path) -> None:
    held_out = data(tmp_path, "mine", "test", x=5)
    check_leakage([held_out], {"same": evaluation(held_out)}, tmp_path / "out.json")
    train = data(tmp_path, "train", x=5)
    asked = {"validation": evaluation(held_out, "validation"), "trained": evaluation(train, "train")}
    check_leakage([train], asked, tmp_path / "out.json")
    assert list(json.loads((tmp_path / "out.json").read_text())["evaluations"]) == ["validation"]


def test_all_of_another_data_set_is_compared(tmp_path: Path) -> None:
    train, benchmark = data(tmp_path, "train", x=5), data(tmp_path, "benchmark", x=5, y=6)
    with pytest.raises(UserError, match=r"evaluation whole: 1 of 2 pictures \(benchmark/x.png = train/x.png\)"):
        check_leakage([train], {"whole": evaluation(benchmark, "train")}, tmp_path / "out.json")
