import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from PIL import Image as Pillow

from vlmflow.data.records import Image, Record, Turn, write_records
from vlmflow.errors import UserError
from vlmflow.evaluation import baselines
from vlmflow.evaluation.baselines import evaluate_baselines, majority_answers, nearest_answers, nearest_rows
from vlmflow.files import sha256_file


def picture(folder: Path, name: str, pixels: Any, size: int = 8) -> Image:
    path = folder / f"{name}.png"
    Pillow.fromarray(np.asarray(pixels, dtype=np.uint8)).resize((size, size), Pillow.Resampling.NEAREST).save(path)
    return Image(str(path), size, size, sha256_file(path))


def record(name: str, question: str, answer: str, *images: Image, category: str | None = None) -> Record:
    text = "<image>\n" * len(images) + question
    return Record(name, images, (Turn("user", text), Turn("assistant", answer)), category)


@pytest.fixture
def stripes(tmp_path: Path) -> dict[str, Image]:
    """Two patterns, and each again darker, with less contrast and at another size: nearest to its own pattern."""
    down, across = [[0, 200], [0, 200]], [[0, 0], [200, 200]]
    faint = {"down": [[10, 60], [12, 60]], "across": [[10, 12], [60, 60]]}
    return {
        "down": picture(tmp_path, "down", down),
        "across": picture(tmp_path, "across", across),
        "down again": picture(tmp_path, "down2", faint["down"], 16),
        "across again": picture(tmp_path, "across2", faint["across"], 16),
    }


def test_majority_is_by_question_with_ties_in_alphabetical_order() -> None:
    train = [
        record("1", "odd?", "yes"), record("2", "odd?", "no"),
        record("3", "which?", "two"), record("4", "which?", "two"), record("5", "which?", "one"),
    ]  # fmt: skip
    test = [record("a", "odd?", "?"), record("b", "which?", "?"), record("c", "never asked?", "?")]
    assert majority_answers(train, test) == ["no", "two", "two"]


def test_nearest_ignores_brightness_and_answers_the_same_question(stripes: dict[str, Image]) -> None:
    train = [
        record("1", "which way?", "down", stripes["down"]),
        record("2", "which way?", "across", stripes["across"]),
        record("3", "bright?", "no", stripes["down again"]),
    ]
    test = [
        record("a", "which way?", "?", stripes["across again"]),
        record("b", "which way?", "?", stripes["down again"]),
        record("c", "how many?", "?", stripes["down"]),
    ]
    assert nearest_answers(train, test) == ["across", "down", None]


def test_nearest_in_blocks_is_nearest_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    left, right = (rng.integers(0, 256, size=(rows, 3072), dtype=np.uint8) for rows in (23, 31))
    right[[4, 9]] = left[3]  # the first of equals
    right[7] = 80  # one colour: zeros, no division
    centred = [pixels - pixels.mean(axis=1, keepdims=True) for pixels in (left.astype(float), right.astype(float))]
    similar = centred[0] @ centred[1].T / np.maximum(1e-9, np.linalg.norm(centred[1], axis=1))
    monkeypatch.setattr(baselines, "_CHUNK", 7)
    assert nearest_rows(left, right) == similar.argmax(axis=1).tolist()
    assert nearest_rows(left, right)[3] == 4


def test_scores_with_intervals_and_categories(tmp_path: Path, stripes: dict[str, Image]) -> None:
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    write_records(train, [
        record("1", "which way?", "down", stripes["down"]),
        record("2", "which way?", "across", stripes["across"]),
        record("3", "which way?", "across", stripes["across"]),
    ])  # fmt: skip
    write_records(test, [
        record("a", "which way?", "down", stripes["down again"], category="way"),
        record("b", "which way?", "across", stripes["across again"], category="way"),
        record("c", "which way?", "across", category="text"),
        record("d", "which way?", "never asked", category="text"),
    ])  # fmt: skip
    evaluate_baselines([train], test, ["exact_match"], tmp_path / "out" / "baselines.json", limit=3)
    found = json.loads((tmp_path / "out" / "baselines.json").read_text())
    assert found["n"] == 3
    assert found["majority"]["metrics"] == {"exact_match": pytest.approx(2 / 3)}
    assert found["majority"]["categories"]["text"] == {"n": 1, "exact_match": 1.0}
    assert found["nearest_neighbour"]["n"] == 2
    assert found["nearest_neighbour"]["metrics"] == {"exact_match": 1.0}
    low, high = found["nearest_neighbour"]["ci95"]["exact_match"]
    assert 0 < low < high == 1


def test_without_pictures_there_is_no_neighbour(tmp_path: Path) -> None:
    write_records(tmp_path / "train.jsonl", [record("1", "odd?", "yes")])
    write_records(tmp_path / "test.jsonl", [record("a", "odd?", "yes")])
    evaluate_baselines([tmp_path / "train.jsonl"], tmp_path / "test.jsonl", ["contains"], tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())["nearest_neighbour"] is None


def test_bad_input_is_named(tmp_path: Path, stripes: dict[str, Image]) -> None:
    empty, some, lost = (tmp_path / f"{name}.jsonl" for name in ("empty", "some", "lost"))
    write_records(empty, [])
    write_records(some, [record("1", "which way?", "down", stripes["down"])])
    with pytest.raises(UserError, match="no training records"):
        evaluate_baselines([empty], some, ["exact_match"], tmp_path / "out.json")
    with pytest.raises(UserError, match="evaluation set is empty"):
        evaluate_baselines([some], empty, ["exact_match"], tmp_path / "out.json")
    write_records(lost, [record("a", "which way?", "down", Image(str(tmp_path / "gone.png"), 8, 8, "0"))])
    with pytest.raises(UserError, match=r"gone\.png: cannot read the picture"):
        evaluate_baselines([some], lost, ["exact_match"], tmp_path / "out.json")


def test_further_answers_boxes_and_metrics_that_are_not_computed(tmp_path: Path, stripes: dict[str, Image]) -> None:
    train, test, out = (tmp_path / name for name in ("train.jsonl", "test.jsonl", "out.json"))
    box = "<box>[[0, 0, 500, 1000]]</box>"
    write_records(train, [record("1", "where?", box, stripes["down"]), record("2", "what?", "puppy", stripes["down"])])
    wanted = [
        record("a", "where?", "[0, 0, 8, 16]", stripes["down again"]),
        record("b", "what?", "dog", stripes["across"]),
    ]
    write_records(test, [wanted[0], replace(wanted[1], answers=("cat", "puppy"))])
    evaluate_baselines([train], test, ["judge", "exact_match", "iou"], out)
    majority = json.loads(out.read_text())["majority"]
    assert list(majority["metrics"]) == list(majority["ci95"]) == ["exact_match", "iou"]
    assert majority["metrics"] == {"exact_match": 0.5, "iou": 1.0}  # without boxes on both sides nothing is missed
    evaluate_baselines([train], test, ["judge"], out)
    assert json.loads(out.read_text()) == {"n": 2, "majority": None, "nearest_neighbour": None}
