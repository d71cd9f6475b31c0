from pathlib import Path

import pytest

from vlmflow.data.records import Image, Record, Turn, write_records
from vlmflow.errors import UserError
from vlmflow.evaluation.leakage import refuse_shared_pictures, shared_pictures

TURNS = (Turn("user", "<image>\n?"), Turn("assistant", "!"))


def write(path: Path, **hashes: str) -> Path:
    """Records by id, each with one picture of the given hash, at a path of its own."""
    images = {name: Image(f"{path.stem}/{name}.png", 8, 8, sha256) for name, sha256 in hashes.items()}
    write_records(path, [Record(name, (image,), TURNS) for name, image in images.items()])
    return path


def test_the_same_picture_under_another_name_is_found(tmp_path: Path) -> None:
    train = [write(tmp_path / "a.jsonl", t1="x", t2="y"), write(tmp_path / "b.jsonl", t3="z")]
    test = write(tmp_path / "test.jsonl", r1="q", r2="y", r3="y", r4="z")
    assert shared_pictures(train, test) == {"y": "r2", "z": "r4"}
    with pytest.raises(UserError) as error:
        refuse_shared_pictures(train, test)
    assert "2 pictures are in the training data and in the evaluation (records r2, r4)" in str(error.value)
    assert "same split seed" in str(error.value)


def test_other_pictures_pass(tmp_path: Path) -> None:
    refuse_shared_pictures([write(tmp_path / "a.jsonl", t1="x")], write(tmp_path / "test.jsonl", r1="y"))
