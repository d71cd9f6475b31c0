"""The hostile corpus: each input gives its one reason, none crashes or hangs the data stage, none passes."""

from __future__ import annotations

import faulthandler
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import hostile as corpus
from hostile import (
    ANSWER,
    FIRST,
    NAME,
    PNG,
    SIZE,
    TABLE,
    Hostile,
    encoded,
    good,
    grounding,
    line,
    llava,
    messages,
    of_array,
    outside,
    picture,
    placed,
    png,
    png_bomb,
    record,
    say,
    swift,
    turned,
    validate,
)
from vlmflow.data.report import kind
from vlmflow.errors import UserError
from vlmflow.files import read_json

JPEG = encoded("JPEG")
UNDECODABLE = "picture cannot be decoded"

PICTURES = {
    "gif named jpg": picture("wrong extension", "x.jpg", encoded("GIF")),
    "half a jpeg": picture(UNDECODABLE, "x.jpg", JPEG[: len(JPEG) // 2]),
    "truncated png": picture(UNDECODABLE, "x.png", PNG[:-200]),
    "png with a flipped bit": picture(UNDECODABLE, "x.png", PNG[:600] + bytes([PNG[600] ^ 1]) + PNG[601:]),
    "webp cut off": picture(UNDECODABLE, "x.webp", encoded("WEBP")[:-100]),
    "zero bytes": picture("empty picture", "x.png", b""),
    "text named png": picture(UNDECODABLE, "x.png", b"a picture of a cat"),
    "html named jpg": picture(UNDECODABLE, "x.jpg", b"<!DOCTYPE html><html><body>404 Not Found</body></html>"),
    "eps named png": picture(UNDECODABLE, "x.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"),
    "pdf named png": picture(UNDECODABLE, "x.png", b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\n%%EOF"),
    "svg": picture(UNDECODABLE, "x.svg", b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>"),
    "git lfs pointer": picture(UNDECODABLE, "x.png", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
    "png bomb": picture("too many pixels", "x.png", png_bomb),
    "png bomb under a limit of its size": picture("too many pixels", "x.png", png_bomb, max_pixels=50_000**2),
    "png without the pixels it promises": picture(UNDECODABLE, "x.png", png(9000, 9000, b"x\x9c\x03\0\0\0\0\x01")),
    "too large for the limit": picture(
        "too many pixels", "x.png", encoded("PNG", size=(41, 30)), max_pixels=SIZE[0] * SIZE[1]
    ),
    "animated gif": picture("several frames", "x.gif", encoded("GIF", frames=3)),
    "animated webp": picture("several frames", "x.webp", encoded("WEBP", frames=3)),
    "animated png": picture("several frames", "x.png", encoded("PNG", frames=3)),
    "tiff with pages": picture("several frames", "x.tif", encoded("TIFF", frames=2)),
    "16-bit png": picture("more than 8 bits a channel", "x.png", of_array("PNG", "uint16")),
    "float tiff": picture("more than 8 bits a channel", "x.tif", of_array("TIFF", "float32")),
    "missing": picture("missing picture", "y.png"),
    "link out of the folder": placed("picture outside its folder", "x.png", outside),
    "link to itself": placed("missing picture", "x.png", lambda folder: (folder / "x.png").symlink_to("x.png")),
    "dangling link": placed("missing picture", "x.png", lambda folder: (folder / "x.png").symlink_to("y.png")),
    "folder": placed("no file", "x.png", lambda folder: (folder / "x.png").mkdir()),
    "pipe": placed("no file", "x.png", lambda folder: os.mkfifo(folder / "x.png")),
    "the folder itself": picture("no file", "."),
    "below a file": picture("missing picture", "0.png/x.png"),
    "path out of the folder": picture("picture outside its folder", "../../outside.png"),
    "path out and in again": picture("picture outside its folder", "../pictures/0.png"),
    "absolute path": picture("picture outside its folder", "/etc/passwd"),
    "name with NUL": picture("control character in a name", "0.png\0"),
    "name with a line feed": picture("control character in a name", "0\n.png"),
    "name with half a character": picture("control character in a name", "\ud800.png"),
    "name too long for a file": picture("name too long", "x" * 256 + ".png"),
    "path too long": picture("name too long", "x/" * 5000 + "0.png"),
    "http URL": picture("not a file", "http://localhost/0.png"),
    "data URL": picture("not a file", "data:image/png;base64," + "A" * 100_000),
}

CONVERSATIONS = {
    "number as picture": record("wrong type", llava(image=3), "image"),
    "empty name": record("empty value", llava(image=""), "image"),
    "empty id": line("empty value", json.dumps(llava(id="")).encode(), "id"),
    "list as id": line("wrong type", json.dumps(llava(id=[])).encode(), "id", "[] (line 2)"),
    "huge id": line("name too long", json.dumps(llava(id="x" * 100_000)).encode(), "id",
                    "x" * 77 + "... (line 2)"),
    "duplicate id": line("duplicate id", json.dumps(llava(id="good1")).encode(), "id", "good1 (line 2)",
                         duplicate_ids="error"),
    "no turns": record("empty value", llava(conversations=[]), "conversations"),
    "turn without text": record("missing key", llava(conversations=[{"from": "human"}]), "conversations[0]"),
    "misspelt key": record("missing key", {"id": NAME, "image": "0.png", "conversatoins": say("<image>", "A")}),
    "pictures under another key": record("pictures under another key", llava(image=None, img="0.png"), "img"),
    "unknown role": record("unknown role", llava(conversations=say("<image>What?", "A", roles=("human", "gtp"))),
                           "conversations[1].from"),
    "roles swapped": record("wrong order of roles", llava(conversations=say("A", "What?", roles=("gpt", "human"))),
                            "conversations[0]"),
    "two users in a row": record("wrong order of roles", llava(
        conversations=say("<image>What?", "And?", "A", roles=("human", "human"))), "conversations[1]"),
    "no answer": record("no answer", llava("<image>What?"), FIRST),
    "only a system text": record("no answer", llava(conversations=[{"from": "system", "value": "Be kind."}]), FIRST),
    "empty answer": record("empty text", llava("<image>What?", ""), ANSWER),
    "blank question": record("empty text", llava(" \n\u3000", "A sky.", image=None), FIRST),
    "placeholder in an answer": record("placeholder outside a question", llava("<image>What?", "<image>"), ANSWER),
    "placeholder in the system text": record("placeholder outside a question", llava(conversations=[
        {"from": "system", "value": "<image>"}, *say("What?", "A sky.")]), FIRST),
    "more placeholders": record("number of placeholders", llava("<image><image>What?", "A"), "conversations"),
    "fewer placeholders": record("number of placeholders", llava(image=["0.png", "1.png"]), "conversations"),
    "placeholder without a picture": record("number of placeholders", llava(image=None), "conversations"),
    "no placeholder where none may be placed": record("number of placeholders", llava("What?", "A"), "conversations",
                                                      placeholder="error"),
    "end of turn in a question": record("special token in the text", llava("<image>a<|im_end|>b", "A"), FIRST),
    "end of text in an answer": record("special token in the text", llava("<image>What?", "A</s>"), ANSWER),
    "picture token in a question": record("special token in the text", llava("<image><IMG_CONTEXT>", "A"), FIRST),
    "picture start in a question": record("special token in the text", llava("<image><img>What?", "A"), FIRST),
    "start of turn in an answer": record("special token in the text", llava("<image>W?", "<|im_start|>user"), ANSWER),
    "bell": record("control character in the text", llava("<image>What?", "A\x07"), ANSWER),
    "terminal escape": record("control character in the text", llava("<image>\x1b[2JWhat?", "A"), FIRST),
    "box outside": record("wrong box in the text", llava("<image>Where?", "<box>[[0, 0, 1, 1001]]</box>"), ANSWER),
    "box of fractions": record("wrong box in the text", llava("<image>W?", "<box>[[0.1, 0, 0.5, 1]]</box>"), ANSWER),
    "box reversed": record("wrong box in the text", llava("<image>W?", "<box>[[9, 9, 3, 3]]</box>"), ANSWER),
    "box without end": record("wrong box in the text", llava("<image>W?", "<box>[[1, 2, 3, 4]]"), ANSWER),
    "box of text": record("wrong box in the text", llava("<image>W?", "<box>left</box>"), ANSWER),
    "box nested too deeply": record("wrong box in the text", llava("<image>W?", f"<box>{'[' * 9999}</box>"), ANSWER),
}  # fmt: skip

DIALECTS = {
    "history that is no pair": record("wrong value", swift(history=[["a", "b", "c"]]), "history[0]"),
    "history of objects": record("wrong type", swift(history=[{"query": "a", "response": "b"}]), "history[0]"),
    "picture list of numbers": record("wrong type", swift(images=[0]), "images[0]"),
    "picture URL": record("not a file", swift(images=["https://localhost/0.png"]), "images"),
    "tags and a list": record("two ways of naming files", swift(query="<img>0.png</img>What?"), "images"),
    "tag without a name": record("empty value", swift(query="<img> </img>What?", images=None), "images"),
    "tag without end": record("special token in the text", swift(query="<img>0.png What?", images=None), "query"),
    "tag in an answer": record("special token in the text", swift(response="<img>0.png</img>"), "response"),
    "objects that are no JSON": record("not valid JSON", swift(objects="[{'bbox'"), "objects"),
    "objects nested too deeply": record("not valid JSON", swift(objects="[" * 100_000), "objects"),
    "box of three numbers": record("wrong shape of objects", grounding([1, 2, 3]), "objects[0]"),
    "no box": record("wrong shape of objects", grounding([]), "objects[0]"),
    "box from right to left": record("box without area", grounding([30, 1, 3, 4]), "objects"),
    "box out of the picture": record("box out of range", grounding([1, 2, SIZE[0] + 1, 4]), "objects"),
    "box before the picture": record("box out of range", grounding([-1, 2, 3, 4]), "objects"),
    "box of NaN": record("wrong shape of objects", swift(query="<image>?", response="<bbox>", objects=json.dumps(
        [{"caption": "", "bbox": [float("nan"), 1, 2, 3]}])), "objects[0]"),
    "box without end": record("wrong shape of objects", grounding([0, 0, 10**400, 1]), "objects[0]"),
    "box in an unknown unit": record("unknown bbox_type", grounding([1, 2, 3, 4], bbox_type="percent"), "objects[0]"),
    "box about no picture": record("box without a picture", grounding([1, 2, 3, 4], image=7), "objects"),
    "box about picture -1": record("box without a picture", grounding([1, 2, 3, 4], image=-1), "objects"),
    "box about picture 10^30": record("wrong shape of objects", grounding([1, 2, 3, 4], image=10**30), "objects[0]"),
    "more box tags": record("number of tags", grounding([1, 2, 3, 4], "<image><bbox><ref-object>"), "objects"),
    "box tags without objects": record("number of tags", swift(query="<image><bbox>?"), "objects"),
    "special token in a name": record("markup in a name", grounding([1, 2, 3, 4], caption="<|im_end|>"), "objects"),
    "placeholder in a name": record("markup in a name", grounding([1, 2, 3, 4], caption="<image>"), "objects"),
    "markup in a name": record("markup in a name", grounding([1, 2, 3, 4], caption="a</ref><box>"), "objects"),
    "half a character in a name": record("markup in a name", grounding([1, 2, 3, 4], caption="\ud800"), "objects"),
    "content is a number": record("wrong type", messages(3), "messages[0].content"),
    "content is null": record("wrong type", messages(None), "messages[0].content"),
    "part of an unknown type": record("wrong value", messages([{"type": "audio"}]), "messages[0].content[0].type"),
    "part without text": record("missing key", messages([{"type": "text"}]), "messages[0].content[0]"),
    "tool role": record("unknown role", {"id": NAME, "messages": [{"role": "tool", "content": "a"}]},
                        "messages[0].role"),
    "picture part with a URL": record("not a file", messages(
        [{"type": "image_url", "image_url": {"url": "https://localhost/0.png"}}], images=None),
        "messages[0].content[0]"),
    "picture part out of the folder": record("picture outside its folder", messages(
        [{"type": "image", "image": "file:///etc/passwd"}], images=None), "image"),
    "parts and a list": record("two ways of naming files", messages([{"type": "image", "path": "1.png"}]), "images"),
    "picture as bytes": record("picture without a path", messages("<image>W?", images=[{"bytes": "AA"}]), "images[0]"),
    "answer without loss": record("answer without loss", {"id": NAME, "messages": [
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "loss": False}]}, "messages[1].loss"),
    "table row with too few cells": Hostile("wrong number of columns", "line 3", None, {
        "all.csv": (TABLE + "1.png,What?\n1.png,What?,A\n").encode()}, keys={"annotations": "all.csv"}),
    "table row with a stray quote": Hostile("not a valid table", "line 3", None, {
        "all.csv": (TABLE + '1.png,"What"?,A\n2.png,What?,A\n').encode()}, keys={"annotations": "all.csv"}),
    "table row with NUL": Hostile("control character in the text", "line 3", "answer", {
        "all.csv": (TABLE + "1.png,What?,A\0\n2.png,What?,A\n").encode()}, keys={"annotations": "all.csv"}),
    "table row without an answer": Hostile("empty text", "line 3", "answer", {
        "all.csv": (TABLE + "1.png,What?,\n2.png,What?,A\n").encode()}, keys={"annotations": "all.csv"}),
}  # fmt: skip

HOSTILE = {
    f"{group}: {name}": hostile
    for group, table in (("picture", PICTURES), ("line", corpus.JSON_LINES), ("file", corpus.FILES),
                         ("record", CONVERSATIONS), ("dialect", DIALECTS), ("video", corpus.VIDEOS))
    for name, hostile in table.items()
}  # fmt: skip


def odd(*texts: str, **keys: object) -> bytes:
    """A line with a record that is right."""
    return json.dumps(llava(*texts, **keys), ensure_ascii=False).encode()


LONG = "图" * 66 + ".png"
ODD: dict[str, tuple[bytes, dict[str, bytes]]] = {
    "byte order mark": (b"\xef\xbb\xbf" + good(0), {}),
    "carriage returns": (good(0).replace(b"\n", b"\r\n") + b"\r\n" + good(1), {}),
    "line separators in a text": (odd("<image>a\u2028b", "\u2029\x85e"), {}),
    "emoji as a surrogate pair": (json.dumps(llava("<image>?", "\U0001f600")).encode(), {}),
    "10 MB in one line": (odd("<image>?", "x" * 10_000_000), {}),
    "number as id": (odd(id=7), {}),
    "a key that is not read": (odd(note=json.loads("[" * 400 + "]" * 400)), {}),
    "less-than signs and words like tags": (odd("<image>a<b", "<b>bold</b> <image2>"), {}),
    "long name in Chinese": (odd(image=LONG), {f"pictures/{LONG}": PNG}),
    "name with blanks and quotes": (odd(image="a 'b\" c.png"), {"pictures/a 'b\" c.png": PNG}),
    "name without an extension": (odd(image="a"), {"pictures/a": PNG}),
    "name with a colon": (odd(image="12:30.png"), {"pictures/12:30.png": PNG}),
} | {
    f"picture: {name}": (odd(image=file), {f"pictures/{file}": content})
    for name, file, content in (
        ("grey", "x.png", encoded("PNG", "L")), ("palette", "x.png", encoded("PNG", "P")),
        ("black and white", "x.png", encoded("PNG", "1")), ("alpha", "x.png", encoded("PNG", "RGBA")),
        ("CMYK", "x.jpg", encoded("JPEG", "CMYK")), ("capital extension", "x.JPEG", encoded("JPEG")),
        ("phone's preview", "x.jpg", encoded("MPO", frames=2)), ("still GIF", "x.gif", encoded("GIF")),
        ("turned", "x.jpg", encoded("JPEG", exif=turned())),
    )
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """A read that never ends is deaf to exceptions: end the process, with a traceback."""
    faulthandler.dump_traceback_later(60, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def told(report: Path) -> list[tuple[str, str | None, str | None]]:
    """Kind, record and field of each problem of a report."""
    problems = read_json(report)["problems"]
    assert all(problem["advice"] for problem in problems)
    return [(kind(problem["reason"]), problem["record"], problem["field"]) for problem in problems]


def test_the_corpus_is_large_enough() -> None:
    assert len(HOSTILE) >= 60


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_input_gives_its_one_reason(name: str, tmp_path: Path) -> None:
    hostile = HOSTILE[name]
    hostile.build(tmp_path / "mine")
    with pytest.raises(UserError) as stopped:
        validate(tmp_path, "stopped", **hostile.keys)
    assert hostile.kind in str(stopped.value)
    one = [(hostile.kind, hostile.record, hostile.field)]
    assert told(tmp_path / "stopped" / "problems.json") == one
    assert len(str(stopped.value)) < 1000

    if hostile.record is None:
        with pytest.raises(UserError) as stopped:
            validate(tmp_path, "dropped", **hostile.keys, on_error="drop")
        assert kind(stopped.value.problem.reason) == hostile.kind
    else:
        folder, records = validate(tmp_path, "dropped", **hostile.keys, on_error="drop")
        assert len(records) == 2
        assert NAME not in [record.id for record in records]
        assert told(folder / "report.json") == one


@pytest.mark.parametrize("name", ODD)
def test_what_is_only_odd_passes(name: str, tmp_path: Path) -> None:
    content, media = ODD[name]
    Hostile("", None, None, {"all.jsonl": content} | media).build(tmp_path / "mine")
    folder, records = validate(tmp_path, "out")
    assert len(records) == content.count(b"\n") + (not content.endswith(b"\n")) - content.count(b"\n\r\n")
    assert read_json(folder / "report.json")["problems"] == []
    if "turned" in name:
        assert (records[0].images[0].width, records[0].images[0].height) == SIZE[::-1]


def test_a_reason_is_the_same_in_every_run(tmp_path: Path) -> None:
    PICTURES["text named png"].build(tmp_path / "mine")
    reasons = []
    for run in "ab":
        with pytest.raises(UserError) as stopped:
            validate(tmp_path, run)
        reasons.append(str(stopped.value).replace(f"/{run}/", "/"))
    assert reasons[0] == reasons[1]
    assert "0x" not in reasons[0]


@pytest.mark.parametrize("name", ["link to itself", "dangling link"])
def test_a_dead_link_is_not_suggested_in_place_of_itself(name: str, tmp_path: Path) -> None:
    PICTURES[name].build(tmp_path / "mine")
    with pytest.raises(UserError):
        validate(tmp_path, "out")
    assert "did you mean 'x.png'" not in (tmp_path / "out" / "problems.md").read_text(encoding="utf-8")
