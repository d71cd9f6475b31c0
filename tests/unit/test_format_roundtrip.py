"""Property: any set of canonical records, written in each format and read back, is the same set."""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

import writers
from vlmflow.data.annotations import Annotations
from vlmflow.data.images import ImageFacts
from vlmflow.data.join import Joiner
from vlmflow.data.records import Box, Image, Record, Turn, Video
from vlmflow.data.videos import VideoFacts
from writers import FOLDER

Draw = Callable[[st.SearchStrategy[Any]], Any]

PROFILE = settings(deadline=None, derandomize=True, max_examples=60)
JSON = st.sampled_from([".json", ".jsonl", ".json.gz", ".jsonl.gz"])
TABLE_ENDINGS = st.sampled_from(["", ".gz"])

PICTURES = ["a.png", "b c.jpg", "图片/一.webp", "x,y.png", "q'\"&.png", "deep/er/z.tiff"]
VIDEOS = ["v.mp4", "视频 2.webm"]
ROOTS = ["", "root", "other/root 2"]


def facts(name: str) -> ImageFacts:
    """What an invented picture is: sides of 8 to 1000 pixels, so that a pixel is no less than a thousandth."""
    digest = hashlib.sha256(name.encode()).digest()
    return ImageFacts(8 + digest[0] * 3, 8 + digest[1] * 3, digest, digest, digest[2])


def video_facts(name: str) -> VideoFacts:
    """What an invented video is."""
    digest = hashlib.sha256(name.encode()).digest()
    return VideoFacts(1 + digest[0], (1 + digest[1]) / 8, 8 + digest[2], 8 + digest[3], digest)


PICTURE_FACTS = {
    f"{root}/{name}".lstrip("/"): facts(f"{root}/{name}".lstrip("/")) for root in ROOTS for name in PICTURES
}
VIDEO_FACTS = {
    f"{root}/{name}".lstrip("/"): video_facts(f"{root}/{name}".lstrip("/")) for root in ROOTS for name in VIDEOS
}


def image(name: str) -> Image:
    known = PICTURE_FACTS[name]
    return Image(f"{FOLDER}/{name}", known.width, known.height, known.sha256.hex())


def video(name: str) -> Video:
    known = VIDEO_FACTS[name]
    size = known.width, known.height
    return Video(f"{FOLDER}/{name}", known.frames, known.duration, *size, known.sha256.hex())


# --- records ---------------------------------------------------------------------------------------------------------

names = st.text(st.characters(exclude_characters="<>", exclude_categories=("Cc", "Cs")), min_size=1, max_size=8)
tokens = st.sampled_from(["<image>", "<video>", "<box>"])
odd = st.sampled_from(
    ["a < b > c", "<", "<b>", "</i>", "\n", "\t", "\r\n", "\\n", '"', "''", ",", "[{", " ", "\u2028", "\ufeff"]
)
words = names | odd
visible = names.filter(str.strip)


@st.composite
def boxes(draw: Draw, index: int, picture: Image, ref: str, kind: str) -> Box:
    """Where something is in a picture, in steps that no formula rounds away and that are no halves of a thousandth."""

    def ends(side: int) -> tuple[int, int]:
        most, least = (side, 1) if kind == "real" else (3000, 6)
        start = draw(st.integers(0, most - max(least, 2)))
        return start, draw(st.integers(start + max(least, 2), most))

    unit = {"real": 1, "norm_1": 3000, "norm_1000": 3}[kind]
    corners = []
    for _ in range(draw(st.integers(1, 2))):
        (x1, x2), (y1, y2) = ends(picture.width), ends(picture.height)
        corners.append(tuple(edge / unit for edge in (x1, y1, x2, y2)))
    return Box(index, kind, tuple(corners), ref)  # type: ignore[arg-type]


def markup(box: Box, picture: Image) -> str:
    """The box as the text has it, by exact arithmetic."""
    whole = {"real": (picture.width, picture.height), "norm_1": (1, 1), "norm_1000": (1000, 1000)}[box.type]
    written = [
        [math.floor(Fraction(edge) * 1000 / whole[side % 2] + Fraction(1, 2)) for side, edge in enumerate(corners)]
        for corners in box.bbox
    ]
    return (f"<ref>{box.ref}</ref>" if box.ref else "") + f"<box>{written}</box>"


@st.composite
def records(draw: Draw, boxed: str, root: str = "", repeat: float = 1.0) -> Record:
    """A conversation; ``boxed`` says whether its boxes come as objects, in the text, or not at all.

    Boxes in the text are those of an only picture, in whole thousandths.
    """
    turns = [(role, draw(st.lists(words | tokens, max_size=5)), draw(visible))
             for _ in range(draw(st.integers(1, 3))) for role in ("user", "assistant")]  # fmt: skip
    if draw(st.booleans()):
        turns.insert(0, ("system", draw(st.lists(words, max_size=3)), draw(visible)))
    most = {"objects": 3, "text": 1, "no": 3}[boxed]
    start = f"{root}/" if root else ""
    images: list[Image] = []
    videos: list[Video] = []
    for role, parts, _ in turns:
        for place, part in enumerate(parts):
            if part == "<image>" and role == "user" and len(images) < most:
                images.append(image(start + draw(st.sampled_from(PICTURES))))
            elif part == "<video>" and role == "user" and len(videos) < 2:
                videos.append(video(start + draw(st.sampled_from(VIDEOS))))
            elif part in ("<image>", "<video>"):
                parts[place] = "no more"
    naming = draw(st.sampled_from(["said", "none", "unsaid"] if boxed == "objects" else ["said", "none"]))
    found: list[Box] = []
    said = []
    for role, parts, end in turns:
        text = ""
        for part in parts:
            if part == "<box>" and images and boxed != "no" and len(found) < 4:
                box = draw(_box(boxed, images, "" if naming == "none" else draw(visible)))
                found.append(box)
                text += markup(box if naming != "unsaid" else Box(box.image, box.type, box.bbox), images[box.image])
            else:
                text += "no box" if part == "<box>" else part
        said.append(Turn(role, text + end))  # type: ignore[arg-type]
    category = draw(st.none() | visible)
    return Record(
        id="",
        images=tuple(images),
        turns=tuple(said),
        videos=tuple(videos),
        boxes=tuple(found),
        category=category,
        repeat=repeat,
    )


@st.composite
def _box(draw: Draw, boxed: str, images: Sequence[Image], ref: str) -> Box:
    index = draw(st.integers(0, len(images) - 1))
    if boxed == "objects":
        return draw(boxes(index, images[index], ref, draw(st.sampled_from(["real", "norm_1", "norm_1000"]))))
    corners = tuple(sorted(draw(st.lists(st.integers(0, 1000), min_size=2, max_size=2, unique=True))) for _ in "xy")
    (x1, x2), (y1, y2) = corners
    return Box(0, "norm_1000", ((x1, y1, x2, y2),), ref)


@st.composite
def record_sets(draw: Draw, boxed: str, **given_facts: Any) -> list[Record]:
    """Some records with ids of their own."""
    made = draw(st.lists(records(boxed, **given_facts), min_size=1, max_size=3))
    return _identified(draw, made)


def _identified(draw: Draw, made: list[Record]) -> list[Record]:
    ids = draw(st.lists(names, min_size=len(made), max_size=len(made), unique=True))
    return [replace(record, id=name) for record, name in zip(made, ids, strict=True)]


@st.composite
def rows(draw: Draw) -> list[Record]:
    """What a table can hold: all records with one picture, or all without; one question each."""
    named = draw(st.sampled_from([[image(name)] for name in PICTURES] + [[]]))
    made = []
    for record in draw(st.lists(records("no"), min_size=1, max_size=3)):
        turns = record.turns[: 3 if record.turns[0].role == "system" else 2]
        plain = [Turn(turn.role, turn.text.replace("<image>", "").replace("<video>", "")) for turn in turns]
        question = Turn("user", plain[-2].text + "<image>" * len(named))
        made.append(replace(record, images=tuple(named), videos=(), turns=(*plain[:-2], question, plain[-1])))
    return _identified(draw, made)


# --- the property ----------------------------------------------------------------------------------------------------


def read_back(paths: list[Path], form: str) -> list[Record]:
    """All records of annotation files; fails when anything is wrong with one or was repaired."""
    annotations = Annotations(paths, form, placeholder="error", duplicate_ids="error")
    drafts = list(annotations)
    assert not annotations.problems
    assert not annotations.counts.repaired and not annotations.counts.placed and not annotations.counts.ignored
    files = [part.path for part in annotations.parts]
    joiner = Joiner(Path(FOLDER), PICTURE_FACTS, VIDEO_FACTS, "round-1000", files)
    joined = [joiner.join(draft) for draft in drafts]
    assert all(isinstance(record, Record) for record in joined), joined
    return joined  # type: ignore[return-value]


TEXT = {
    "llava": [writers.llava],
    "sharegpt": [writers.sharegpt, writers.sharegpt_roles],
    "swift": [writers.swift, writers.swift_text, writers.swift_commas],
    "messages": [writers.messages, writers.messages_typed, writers.messages_bare],
}
WRITERS = [(form, writer) for form, found in TEXT.items() for writer in found]
OBJECT_WRITERS = [("swift", writers.swift), ("swift", writers.swift_text), ("messages", writers.messages)]


def _named(pair: tuple[str, Any]) -> str:
    return pair[1].__name__


@pytest.mark.parametrize("pair", WRITERS, ids=_named)
@PROFILE
@given(data=st.data())
def test_conversations(pair: tuple[str, Callable[[Record], Any]], data: st.DataObject) -> None:
    made = data.draw(record_sets(data.draw(st.sampled_from(["no", "text"]))))
    _written_and_read(*pair, made, data)


@pytest.mark.parametrize("pair", OBJECT_WRITERS, ids=_named)
@PROFILE
@given(data=st.data())
def test_conversations_with_objects(pair: tuple[str, Callable[[Record], Any]], data: st.DataObject) -> None:
    _written_and_read(*pair, data.draw(record_sets("objects")), data)


def _written_and_read(form: str, writer: Callable[[Record], Any], made: list[Record], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{data.draw(JSON)}"
        writers.write_values(path, list(map(writer, made)), data.draw(st.sampled_from([None, 1])))
        assert read_back([path], data.draw(st.sampled_from([form, "auto"]))) == made


@pytest.mark.parametrize("form", ["csv", "tsv"])
@PROFILE
@given(made=rows(), ending=TABLE_ENDINGS, named=st.booleans())
def test_tables(form: str, made: list[Record], ending: str, named: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = writers.write_values(Path(folder) / f"a.{form}{ending}", list(map(writers.row, made)))
        assert read_back([path], form if named else "auto") == made


@PROFILE
@given(data=st.data())
def test_internvl_meta(data: st.DataObject) -> None:
    """Several files, each with a folder and a repeat; ids are unique over all of them."""
    heads = data.draw(
        st.lists(st.tuples(st.sampled_from(ROOTS), st.sampled_from([1, 3, 0.5, 3.5])), min_size=1, max_size=3)
    )
    parts = [data.draw(st.lists(records("text", root, repeat), min_size=1, max_size=2)) for root, repeat in heads]
    made = _identified(data.draw, [record for part in parts for record in part])
    rest = iter(made)
    parts = [[next(rest) for _ in part] for part in parts]
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for number, ((root, repeat), part) in enumerate(zip(heads, parts, strict=True)):
            values = [writers.llava(record, root) for record in part]
            file = writers.write_values(Path(folder) / f"{number}{data.draw(JSON)}", values)
            files[f"part {number}"] = file, root, repeat
        meta = writers.write_meta(Path(folder) / "meta.json", files)
        assert read_back([meta], data.draw(st.sampled_from(["internvl-meta", "auto"]))) == made
