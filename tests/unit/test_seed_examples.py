"""Every data example of the tutorials loads: InternVL with ms-swift 2, and LLaVA with XTuner.

The examples stand here as the tutorials print them, with the line breaks within a record removed. Where one is no JSON
(comments, a comma too many) it is refused with that reason as printed, and loads once corrected.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hostile import encoded, validate, video
from vlmflow.data.records import Box, Record
from vlmflow.errors import UserError
from vlmflow.files import read_json

COCO = "coco2014/train2014/COCO_train2014_000000001507.jpg"
"""Absolute in the tutorial; names are relative to the data set's pictures here, as nothing outside is ever opened."""
SIZE = (640, 480)


def load(root: Path, text: str, media: list[str], name: str = "all.jsonl", **keys: Any) -> tuple[list[Record], Any]:
    """The records of an annotation file by id, without splits, and the report; makes the pictures and videos."""
    for index, file in enumerate(media):
        path = root / "mine" / "pictures" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        size = SIZE if file == COCO else (32 + index, 24)
        path.write_bytes(video() if path.suffix == ".mp4" else encoded("JPEG", size=size))
    (root / "mine" / "pictures").mkdir(parents=True, exist_ok=True)
    (root / "mine" / name).write_text(text, encoding="utf-8")
    folder, records = validate(root, "out", **{"annotations": name, "placeholder": "last", **keys})
    report = read_json(folder / "report.json")
    assert report["problems"] == []
    return records, report


def told(record: Record) -> list[str]:
    """The texts of a record; its roles must take turns."""
    roles = [turn.role for turn in record.turns]
    assert roles == ["user", "assistant"] * (len(roles) // 2)
    return [turn.text for turn in record.turns]


def named(record: Record) -> list[str]:
    """The names of the pictures or videos of a record below the folder of pictures."""
    return [media.path.split("/pictures/")[1] for media in record.images or record.videos]


# --- 72d23d97577b5424: InternVL with ms-swift 2 -----------------------------------------------------------------------

ONE = '{"query": "55555", "response": "66666", "images": ["image_path"]}'
TWO = '{"query": "eeeee", "response": "fffff", "history": [], "images": ["image_path1", "image_path2"]}'
TURNS = '"history": [["query1", "response1"], ["query2", "response2"]]'
HISTORY = f'{{"query": "EEEEE", "response": "FFFFF", {TURNS}, "images": ["image_path"]}}'


def test_one_picture(tmp_path: Path) -> None:
    (record,), report = load(tmp_path, ONE, ["image_path"])
    assert told(record) == ["<image>\n55555", "66666"]
    assert named(record) == ["image_path"]
    assert report["placed"] == {"<image> before the last question": 1}


def test_two_pictures_and_an_empty_history(tmp_path: Path) -> None:
    (record,), _ = load(tmp_path, TWO, ["image_path1", "image_path2"])
    assert told(record) == ["<image>\n<image>\neeeee", "fffff"]
    assert [image.width for image in record.images] == [32, 33]


@pytest.mark.parametrize("policy", ["first", "last"])
def test_a_history_and_a_picture_without_a_place(tmp_path: Path, policy: str) -> None:
    """The tutorial says the last question, the code of ms-swift 2 took the first: the configuration decides."""
    (record,), report = load(tmp_path, HISTORY, ["image_path"], placeholder=policy)
    asked = ["query1", "query2", "EEEEE"]
    asked[0 if policy == "first" else 2] = "<image>\n" + asked[0 if policy == "first" else 2]
    assert told(record)[::2] == asked
    assert told(record)[1::2] == ["response1", "response2", "FFFFF"]
    assert report["placed"] == {f"<image> before the {policy} question": 1}


def test_a_picture_without_a_place_can_be_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="number of placeholders: 0 <image> for 1 picture"):
        load(tmp_path, HISTORY, ["image_path"], placeholder="error")


def test_the_three_lines_together(tmp_path: Path) -> None:
    """As the tutorial shows them, in one file; the text says that several pictures may also stand with commas."""
    text = "\n".join([ONE, TWO.replace('["image_path1", "image_path2"]', '"image_path1,image_path2"'), HISTORY])
    records, report = load(tmp_path, text, ["image_path", "image_path1", "image_path2"])
    assert sorted(map(named, records)) == [["image_path"], ["image_path"], ["image_path1", "image_path2"]]
    assert {record.id for record in records} == {"all-0", "all-1", "all-2"}
    assert report["placed"] == {"<image> before the last question": 3}


@pytest.mark.parametrize(
    ("line", "texts"),
    [
        ('{"query": "55555", "response": "66666"}', ["55555", "66666"]),
        ('{"query": "eeeee", "response": "fffff", "history": []}', ["eeeee", "fffff"]),
        (f'{{"query": "EEEEE", "response": "FFFFF", {TURNS}}}',
         ["query1", "response1", "query2", "response2", "EEEEE", "FFFFF"]),
    ],
)  # fmt: skip
def test_text_only(tmp_path: Path, line: str, texts: list[str]) -> None:
    (record,), report = load(tmp_path, line, [])
    assert told(record) == texts
    assert record.images == ()
    assert report["placed"] == {}


def test_several_pictures_in_several_turns(tmp_path: Path) -> None:
    """Pictures belong to their tags in the order of the conversation: the history comes before the query."""
    line = (
        r'{"query": "Image-1: <image>\nImage-2: <image>\nDescribe the two images in detail.", "response": "xxxxxxxxx", '
        '"history": [["<image>Describe the image", "xxxxxxx"], ["CCCCC", "DDDDD"]], '
        '"images": ["image_path1", "image_path2", "image_path3"]}'
    )
    (record,), report = load(tmp_path, line, ["image_path1", "image_path2", "image_path3"])
    assert told(record)[::2] == [
        "<image>Describe the image", "CCCCC", "Image-1: <image>\nImage-2: <image>\nDescribe the two images in detail.",
    ]  # fmt: skip
    assert named(record) == ["image_path1", "image_path2", "image_path3"]
    assert report["placed"] == {}


TAGS = (
    r'{"query": "Image-1: <img>img_path</img>\n Image-2: <img>img_path2</img>\n Describe the two images in detail.", '
    '"response": "xxxxxxxxx", '
    '"history": [["<img>img_path3</img> Describe the image", "xxxxxxx"], ["CCCCC", "DDDDD"]], }'
)


def test_paths_in_tags(tmp_path: Path) -> None:
    """The comma before the last brace is a misprint; the pictures are those of the tags, the history's first."""
    (record,), report = load(tmp_path, TAGS.replace("], }", "]}"), ["img_path", "img_path2", "img_path3"])
    assert told(record)[::2] == [
        "<image> Describe the image", "CCCCC",
        "Image-1: <image>\n Image-2: <image>\n Describe the two images in detail.",
    ]  # fmt: skip
    assert named(record) == ["img_path3", "img_path", "img_path2"]
    assert report["placed"] == {}


def test_paths_in_tags_as_printed_are_no_json(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"line 1: not valid JSON: .*double quotes"):
        load(tmp_path, TAGS, ["img_path", "img_path2", "img_path3"])


def test_a_video_needs_no_tag(tmp_path: Path) -> None:
    """The tutorial's `video_path` is any name; a video's extension says how it is to be read."""
    line = (
        '{"query": "Describe this video in detail. Don\'t repeat", "response": "xxxxxxxxx", "history": [], '
        '"videos": ["video_path.mp4"]}'
    )
    (record,), report = load(tmp_path, line, ["video_path.mp4"])
    assert told(record) == ["<video>\nDescribe this video in detail. Don't repeat", "xxxxxxxxx"]
    assert [(film.frames, film.duration, film.width, film.height) for film in record.videos] == [(12, 3.0, 64, 48)]
    assert report["placed"] == {"<video> before the last question": 1}


def objects(query: str, response: str, bbox: str) -> str:
    """A line of the tutorial's grounding examples: `objects` is JSON within JSON."""
    inner = f'[{{"caption": "guy in red", "bbox": {bbox}, "bbox_type": "real", "image": 0}}]'
    return (
        f'{{"query": "{query}", "response": "{response}", "images": ["{COCO}"], "objects": {json.dumps(inner)} }}'
    )  # fmt: skip


def test_grounding(tmp_path: Path) -> None:
    """Pixels of a picture of 640 x 480 as thousandths, rounded: 138/640 = 0.215625, 136/480 = 0.28333, ..."""
    (record,), report = load(tmp_path, objects("Find <bbox>", "<ref-object>", "[138, 136, 235, 359]"), [COCO])
    assert told(record) == ["<image>\nFind <box>[[216, 283, 367, 748]]</box>", "<ref>guy in red</ref>"]
    assert record.boxes == (Box(0, "real", ((138, 136, 235, 359),), "guy in red"),)
    assert report["records with boxes"] == 1


def test_grounding_of_several_boxes(tmp_path: Path) -> None:
    """The line before this one in the tutorial, `# mapping to multiple bboxes`, is a comment and no JSON."""
    line = objects("Find <ref-object>", "<bbox>", "[[138, 136, 235, 359], [1,2,3,4]]")
    with pytest.raises(UserError, match="line 1: not valid JSON"):
        load(tmp_path, f"# mapping to multiple bboxes\n{line}", [COCO])
    (record,), _ = load(tmp_path, line, [COCO])
    # 1/640 = 0.0015625, 2/480 = 0.0041667, 3/640 = 0.0046875, 4/480 = 0.0083333
    boxes = "<box>[[216, 283, 367, 748], [2, 4, 5, 8]]</box>"
    assert told(record) == ["<image>\nFind <ref>guy in red</ref>", boxes]
    assert record.boxes[0].bbox == ((138, 136, 235, 359), (1, 2, 3, 4))


def test_grounding_as_ms_swift_2_wrote_it(tmp_path: Path) -> None:
    """Its code multiplied by 999 and cut off: 138 x 999 / 640 = 215.4, 136 x 999 / 480 = 283.05, ..."""
    line = objects("Find <bbox>", "<ref-object>", "[138, 136, 235, 359]")
    (record,), _ = load(tmp_path, line, [COCO], box_scale="truncate-999")
    assert told(record)[0] == "<image>\nFind <box>[[215, 283, 366, 747]]</box>"


def test_grounding_written_out(tmp_path: Path) -> None:
    """Thousandths already, so they do not depend on the picture; the blanks within <box> stay as they were written."""
    line = (
        '{"query": "Find <ref>the man</ref>", "response": "<box> [[200, 200, 600, 600]] </box>", '
        '"images": ["image_path1"]}'
    )
    (record,), _ = load(tmp_path, line, ["image_path1"])
    assert told(record) == ["<image>\nFind <ref>the man</ref>", "<box> [[200, 200, 600, 600]] </box>"]
    assert record.boxes == (Box(0, "norm_1000", ((200, 200, 600, 600),)),)


# --- 868e01a6b3e205c8: LLaVA with XTuner ------------------------------------------------------------------------------

PICTURE = "图片文件的相对位置。相对谁？相对你后面config文件里指定的image_folder参数的路径。"
FORMAT = """[
    {
        "id": "随便什么字符串",
        "image": "图片文件的相对位置。相对谁？相对你后面config文件里指定的image_folder参数的路径。",
        "conversation": [
            {"from": "human", "value": "<image>\\n第1个问题。"},
            {"from": "gpt", "value": "第1个回答"},
            {"from": "human", "value": "第2个问题。"},
            {"from": "gpt", "value": "第2个回答"},
            # ......
            {"from": "human", "value": "第n个问题。"},
            {"from": "gpt", "value": "第n个回答"},
        ]
    },

    # 下面是第2组训练数据了。

    {
        "id": "随便什么字符串",
        "image": "图片文件的相对位置。相对谁？相对你后面config文件里指定的image_folder参数的路径。",
        "conversation": [
            {"from": "human", "value": "<image>\\n第1个问题。"},
            # ......
            {"from": "gpt", "value": "第n个回答"}
        ]
    }
]
"""


def test_the_spelling_conversation(tmp_path: Path) -> None:
    """Both records have one id and one picture; comments and the comma before a bracket are no JSON."""
    lines = [line for line in FORMAT.splitlines() if not line.strip().startswith("#")]
    text = "\n".join(lines).replace('第n个回答"},', '第n个回答"}')
    (first, second), report = load(tmp_path, text, [PICTURE], "all.json")
    assert told(first) == ["<image>\n第1个问题。", "第1个回答", "第2个问题。", "第2个回答", "第n个问题。", "第n个回答"]
    assert told(second) == ["<image>\n第1个问题。", "第n个回答"]
    assert named(first) == named(second) == [PICTURE]
    assert [first.id, second.id] == ["随便什么字符串", "随便什么字符串-2"]
    assert report["repaired"] == {"key 'conversation'": 2, "duplicate id": 1}


def test_the_spelling_conversation_as_printed_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not valid JSON: Expecting value \(line 10, column 13\)"):
        load(tmp_path, FORMAT, [PICTURE], "all.json")


def test_the_spelling_conversations(tmp_path: Path) -> None:
    texts = {
        "000000033471": [
            "<image>\nWhat are the colors of the bus in the image?", "The bus in the image is white and red.",
            "What feature can be seen on the back of the bus?", "The back of the bus features an advertisement.",
            "Is the bus driving down the street or pulled off to the side?",
            "The bus is driving down the street, which is crowded with people and other vehicles.",
        ],
        "000000052846": [
            "<image>\nWhere is the cat positioned in the image?",
            "The cat is positioned on top of the back of the couch in the living room.",
        ],
    }  # fmt: skip
    value: list[dict[str, Any]] = [
        {"id": name, "image": f"coco/train2017/{name}.jpg", "conversations": conversation(said)}
        for name, said in texts.items()
    ]
    media = [entry["image"] for entry in value]
    records, report = load(tmp_path, json.dumps(value, indent=2), media, "all.json")
    assert {record.id: told(record) for record in records} == texts
    assert [named(record) for record in records] == [[f"coco/train2017/{record.id}.jpg"] for record in records]
    assert report["repaired"] == report["placed"] == {}


@pytest.mark.parametrize("pairs", [3, 5])
def test_the_template_for_own_pictures(tmp_path: Path, pairs: int) -> None:
    """Printed with three pairs of placeholders in angle brackets, to be filled with five; these are text, no tags."""
    said = ["<image>\nDescribe this image.", "<answer1>"]
    said += [f"<{what}{number}>" for number in range(2, pairs + 1) for what in ("question", "answer")]
    entry = {"id": "<random_number_string>", "image": "test_img/oph.jpg", "conversations": conversation(said)}
    (record,), report = load(tmp_path, json.dumps([entry], indent=2), ["test_img/oph.jpg"], "repeat_data.json")
    assert told(record) == said
    assert len(said) == 2 * pairs
    assert record.id == "<random_number_string>"
    assert named(record) == ["test_img/oph.jpg"]
    assert report["repaired"] == report["placed"] == {}


def conversation(said: list[str]) -> list[dict[str, str]]:
    """Turns as the tutorial writes them."""
    return [{"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(said)]
