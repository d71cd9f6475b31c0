"""The data stage as a whole: records out, or every problem named and nothing written."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from PIL import Image as Pictures

from vlmflow.data.records import Record, read_records
from vlmflow.data.validate import validate_dataset
from vlmflow.errors import UserError
from vlmflow.files import read_json, read_manifest

SCHEMA = Path(__file__).parents[2] / "workflow" / "schemas" / "record.schema.yaml"
COUNT = 60


def config(**keys: Any) -> dict[str, Any]:
    defaults = {
        "annotations": "all.json", "images": "pictures", "format": "auto", "placeholder": "first",
        "box_scale": "round-1000", "duplicate_ids": "suffix",
        "split": {"validation": 0.2, "test": 0.2, "seed": 0}, "on_error": "error", "max_dropped": 100,
        "max_pixels": 100_000_000, "limit": None,
    }  # fmt: skip
    return {**defaults, **keys}


def record(index: int, **keys: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": "<image>\nHow wide?"}, {"from": "gpt", "value": str(index + 1)}]
    return {"id": f"r{index}", "image": f"{index}.png", "conversations": turns, **keys}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A good data set at mine/, relative to the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "pictures").mkdir(parents=True)
    for index in range(COUNT):
        Pictures.new("RGB", (index + 1, 9)).save(tmp_path / "mine" / "pictures" / f"{index}.png")
    write([record(index) for index in range(COUNT)])
    return Path("mine")


def write(records: list[Any], name: str = "all.json") -> None:
    Path("mine", name).write_text(json.dumps(records))


def validate(root: Path, **keys: Any) -> dict[str, list[Record]]:
    output = Path("results/data/mine/manifest.json")
    validate_dataset(config(**keys), root, [], Path("cache/mine.sqlite"), output)
    read_manifest(output)
    names = ["pictures.jsonl", "report.json", "report.md", "test.jsonl", "train.jsonl", "validation.jsonl"]
    assert sorted(path.name for path in output.parent.iterdir()) == [".vlmflow", "manifest.json", *names]
    return {split: read_records(output.parent / f"{split}.jsonl") for split in ("train", "validation", "test")}


def report() -> dict[str, Any]:
    found: dict[str, Any] = read_json(Path("results/data/mine/report.json"))
    return found


def test_a_good_data_set(root: Path) -> None:
    splits = validate(root)
    counts = {split: len(records) for split, records in splits.items()}
    assert sum(counts.values()) == COUNT
    assert all(counts.values())
    assert read_json(Path("results/data/mine/manifest.json"))["records"] == counts == report()["splits"]
    assert report()["records"] == {"read": COUNT, "accepted": COUNT, "dropped": 0}
    assert report()["images"] == {"count": COUNT, "width": {"min": 1, "max": COUNT}, "height": {"min": 9, "max": 9}}
    image = splits["train"][0].images[0]
    assert image.path.startswith("mine/pictures/")
    with Pictures.open(image.path) as picture:
        assert picture.size == (image.width, image.height)
    schema = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))
    for line in Path("results/data/mine/train.jsonl").read_text(encoding="utf-8").strip("\n").split("\n"):
        jsonschema.validate(json.loads(line), schema)


def test_the_same_input_gives_the_same_content(root: Path) -> None:
    write(
        [
            record(index, **({"image": "x.png"} if index % 9 == 0 else {"category": 3} if index % 7 == 0 else {}))
            for index in range(COUNT)
        ]
    )
    validate(root, on_error="drop")
    first = read_json(Path("results/data/mine/manifest.json"))
    validate(root, on_error="drop")
    assert read_json(Path("results/data/mine/manifest.json")) == first


@pytest.mark.parametrize("where", ["inside", "outside", "up"])
def test_paths_are_relative_inside_the_working_directory_only(
    root: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = root.absolute()
    if where != "inside":
        Path("elsewhere").mkdir()
        monkeypatch.chdir("elsewhere")
    path = validate(Path("../mine") if where == "up" else place)["train"][0].images[0].path
    assert Path(path).is_file()
    assert path.startswith("mine/pictures/" if where == "inside" else f"{place}/pictures/")


def test_one_picture_under_two_names_stays_on_one_side(root: Path) -> None:
    for index in range(COUNT):
        with Pictures.open(root / "pictures" / f"{index}.png") as picture:
            picture.save(root / "pictures" / f"copy{index}.bmp")
    write([record(index) for index in range(COUNT)], "first.json")
    write([record(index, image=f"copy{index}.bmp") for index in range(COUNT)], "second.json")
    splits = validate(root, annotations=["first.json", "second.json"])
    sides = [{entry.images[0].width for entry in records} for records in splits.values()]
    assert sum(map(len, sides)) == len(set.union(*sides)) == COUNT
    assert report()["repaired"] == {"duplicate id": COUNT}


def test_text_only_records_and_several_pictures(root: Path) -> None:
    chat = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]
    both = [{"from": "human", "value": "<image><image> Same?"}, {"from": "gpt", "value": "No"}]
    write([*map(record, range(20)), {"id": "text", "conversations": chat},
           *(record(20 + i, image=[f"{i}.png", f"{i + 1}.png"], conversations=both) for i in range(19))])  # fmt: skip
    splits = validate(root, split={"validation": 0, "test": 0, "seed": 0})
    assert [image.width for image in splits["train"][-1].images] == [19, 20]
    assert next(entry for entry in splits["train"] if entry.id == "text").images == ()


def test_any_problem_stops_by_default_and_all_are_logged(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "pictures" / "3.png").write_bytes(b"")
    write([*map(record, range(COUNT)), record(90, conversations=[]), record(91, image="404.png"), record(92, id=[])])
    with pytest.raises(UserError, match=r"4 of 63 records cannot be used \(first: .*r90[\s\S]*on_error: drop"):
        validate(root)
    assert sorted(path.name for path in Path("results/data/mine").iterdir()) == ["problems.json", "problems.md"]
    page = Path("results/data/mine/problems.md").read_text(encoding="utf-8")
    logged = [message for message in caplog.messages if "->" in message]
    kinds = ["empty value", "wrong type", "empty picture", "missing picture"]
    assert [message.split(": ")[1] for message in logged] == kinds
    assert all(f"## {kind} (1 records)" in page for kind in kinds)
    assert "record r3 (index 3), field image: empty picture: 3.png" in caplog.text


def test_the_log_is_capped(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    write([record(0, id=f"no{index}", image=f"no{index}.png") for index in range(500)])
    with pytest.raises(UserError, match="500 of 500"):
        validate(root)
    assert len(caplog.messages) == 11
    assert caplog.messages[-1] == "... and 490 more of this kind: missing picture"
    assert len(read_json(Path("results/data/mine/problems.json"))["problems"]) == 500


def test_bad_records_can_be_dropped_and_are_reported(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    bad = [record(1, id=f"b{index}", image=f"<b>|no{index}.png", note="x") for index in range(25)]
    write([*map(record, range(COUNT)), *bad, {**record(2), "conversation": 1}, record(3, id="\x1b[2J\ud800")])
    splits = validate(root, on_error="drop", max_dropped=26)
    assert sum(map(len, splits.values())) == COUNT + 1
    found = report()
    assert found["records"] == {"read": COUNT + 27, "accepted": COUNT + 1, "dropped": 26}
    assert found["dropped"] == {"missing picture": 25, "control character in a name": 1}
    assert found["repaired"] == {"duplicate id": 1}
    assert found["ignored_keys"] == {"note": 25, "conversation": 1}
    assert {key for key, value in found["problems"][0].items() if value} == {
        "reason",
        "advice",
        "file",
        "record",
        "field",
    }
    page = Path("results/data/mine/report.md").read_text(encoding="utf-8")
    assert "| records dropped | 26 |" in page
    assert "## missing picture (25 records)" in page
    assert "&lt;b>\\|no19.png" in page
    assert "no20.png" not in page
    assert "- ... and 5 more in report.json" in page
    assert "\x1b" not in page + caplog.text
    assert caplog.messages[-1].startswith(f"{COUNT + 1} of {COUNT + 27} records: ")


def test_reasons_stand_in_the_order_of_the_records(root: Path) -> None:
    bad = [{}, record(1, id=[]), record(1, conversations=[]), record(1, images=[""], image=None), record(1, image="no")]
    write([*map(record, range(COUNT)), *bad, record(1, image=["0.png", "1.png"])])
    validate(root, on_error="drop")
    assert list(report()["dropped"].items()) == [
        ("empty value", 2), ("missing key", 1), ("wrong type", 1), ("number of placeholders", 1),
        ("missing picture", 1),
    ]  # fmt: skip


def test_too_many_dropped_is_an_error(root: Path) -> None:
    write([*map(record, range(COUNT)), *(record(1, image="no.png") for _ in range(3))])
    with pytest.raises(UserError, match=r"3 of 63 records cannot be used, 2 may be dropped"):
        validate(root, on_error="drop", max_dropped=2)


def test_a_broken_file_is_never_dropped(root: Path) -> None:
    Path("mine/second.json").write_text("[{")
    with pytest.raises(UserError, match=r"second\.json: not valid JSON"):
        validate(root, annotations=["all.json", "second.json"], on_error="drop")


def test_limit_takes_the_first_records(root: Path) -> None:
    splits = validate(root, limit=10)
    assert sorted(int(entry.id[1:]) for records in splits.values() for entry in records) == list(range(10))


def test_max_pixels(root: Path) -> None:
    with pytest.raises(UserError, match=rf"10 of {COUNT} records.*too many pixels"):
        validate(root, max_pixels=9 * 50)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"annotations": "al.json"}, r"mine/al\.json: no such file or folder\n.*did you mean 'all\.json'"),
        ({"images": "picture"}, r"mine/picture: no such file or folder\n.*did you mean 'pictures'"),
        ({"annotations": "../mine/all.json"}, "lies outside the data set's folder"),
        ({"images": "/tmp"}, "lies outside the data set's folder"),
        ({"annotations": []}, "no records"),
        ({"annotations": ["all.json", "./all.json"]}, "an annotation file is named twice"),
        ({"split": {"validation": 0.0, "test": 1.0, "seed": 0}}, "no record is left to train on"),
    ],
)
def test_what_cannot_be_a_data_set(root: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        validate(root, **keys)


@pytest.mark.parametrize("content", [[], [{}]])
def test_an_empty_data_set_is_an_error(root: Path, content: list[Any]) -> None:
    write(content)
    with pytest.raises(UserError, match=r"no records?"):
        validate(root, on_error="drop")


@pytest.mark.usefixtures("root")
def test_a_missing_root_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"mien: no such folder\n.*did you mean 'mine'"):
        validate(Path("mien"))
