"""Canonical records in the annotation formats that people have: the opposite of what vlmflow.data.formats reads."""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vlmflow.data.records import Record

Value = dict[str, Any]

_MEDIA = re.compile("(<image>|<video>)")
_BOX = re.compile(r"(<ref>[^<]*</ref>)?<box>[^<]*</box>")


def llava(record: Record, folder: str = "") -> Value:
    """LLaVA, XTuner, InternVL; ``folder`` is what the names are relative to."""
    turns = [{"from": _SPEAKERS[turn.role], "value": turn.text} for turn in record.turns]
    images, videos = _names(record.images, folder), _names(record.videos, folder)
    one = {"image": images[0] if len(images) == 1 else images, "video": videos[0] if len(videos) == 1 else videos}
    return {**_common(record), **{key: names for key, names in one.items() if names}, "conversations": turns}


def sharegpt(record: Record) -> Value:
    """ShareGPT as LLaMA-Factory extends it: system apart, pictures in a list."""
    system, turns = _system(record)
    said = [{"from": _SPEAKERS[turn.role], "value": turn.text} for turn in turns]
    return {**_common(record), **_lists(record), **system, "conversations": said}


def sharegpt_roles(record: Record) -> Value:
    """ShareGPT in Hugging Face's spelling of a turn."""
    turns = [{"role": turn.role, "content": turn.text} for turn in record.turns]
    return {**_common(record), **_lists(record), "conversations": turns}


def swift(record: Record) -> Value:
    """ms-swift 2: query, response and history; boxes as a list of objects."""
    system, turns = _system(record)
    texts = [_tagged(turn.text) if record.boxes else turn.text for turn in turns]
    pairs = [list(pair) for pair in zip(texts[::2], texts[1::2], strict=True)]
    (query, response), history = pairs[-1], pairs[:-1]
    objects = {"objects": _objects(record)} if record.boxes else {}
    said = {"query": query, "response": response, "history": history}
    return {**_common(record), **_lists(record), **system, **said, **objects}


def swift_text(record: Record) -> Value:
    """ms-swift 2 as its guide writes it: objects as JSON text, pictures named in the questions."""
    value = swift(record)
    images, videos = iter(value.pop("images", ())), iter(value.pop("videos", ()))

    def named(text: str) -> str:
        return _MEDIA.sub(
            lambda tag: f"<img>{next(images)}</img>" if tag[0] == "<image>" else f"<video>{next(videos)}</video>", text
        )

    value["history"] = [[named(query), response] for query, response in value["history"]]
    value["query"] = named(value["query"])
    if "objects" in value:
        value["objects"] = json.dumps(value["objects"])
    return value


def swift_commas(record: Record) -> Value:
    """ms-swift 2 with the names in one text, which only names without commas can be."""
    value = swift(record)
    for key in {"images", "videos"} & set(value):
        if not any("," in name for name in value[key]):
            value[key] = ", ".join(value[key])
    return value


def messages(record: Record) -> Value:
    """ms-swift 3: messages; boxes as lists beside each other if they are of one type."""
    texts = [_tagged(turn.text) if record.boxes else turn.text for turn in record.turns]
    turns = [{"role": turn.role, "content": text} for turn, text in zip(record.turns, texts, strict=True)]
    objects: Any = _objects(record)
    if len({box.type for box in record.boxes}) == 1:
        objects = {
            "ref": [box.ref for box in record.boxes if box.ref],
            "bbox": [item["bbox"] for item in objects],
            "bbox_type": record.boxes[0].type.replace("_", ""),
            "image_id": [box.image for box in record.boxes],
        }
    return {
        **_common(record),
        **_lists(record),
        "messages": turns,
        **({"objects": objects} if record.boxes else {}),
    }


def messages_typed(record: Record) -> Value:
    """Hugging Face and OpenAI: content in parts, which name their files."""
    images, videos = iter(_names(record.images)), iter(_names(record.videos))

    def part(text: str) -> Value:
        if text == "<image>":
            return {"type": "image_url", "image_url": {"url": next(images)}}
        return {"type": "video", "video": next(videos)} if text == "<video>" else {"type": "text", "text": text}

    turns = [{"role": turn.role, "content": list(map(part, _parts(turn.text)))} for turn in record.turns]
    return {**_common(record), "messages": turns}


def messages_bare(record: Record) -> Value:
    """Hugging Face: content in parts, which stand for the files of a list."""

    def part(text: str) -> Value:
        return {"type": text[1:-1]} if _MEDIA.fullmatch(text) else {"type": "text", "text": text}

    turns = [{"role": turn.role, "content": list(map(part, _parts(turn.text)))} for turn in record.turns]
    return {**_common(record), **_lists(record), "messages": turns}


def row(record: Record) -> Value:
    """A row of a table: at most one picture, one question, one answer."""
    system, (question, answer) = _system(record)
    said = {"system": system.get("system", ""), "question": question.text, "answer": answer.text}
    image = {"image": _names(record.images)[0]} if record.images else {}
    return {"id": record.id, **image, **said, "category": record.category}


# --- files -----------------------------------------------------------------------------------------------------------


def write_values(path: Path, values: Sequence[Value], indent: int | None = None) -> Path:
    """JSON lines, a table or a JSON array, as the suffix says; gzipped if it ends in .gz."""
    plain = path.name.removesuffix(".gz")
    with (
        gzip.open(path, "wt", encoding="utf-8", newline="")
        if path.suffix == ".gz"
        else path.open("w", encoding="utf-8", newline="") as stream
    ):
        if plain.endswith((".csv", ".tsv")):
            writer = csv.DictWriter(stream, list(values[0]), delimiter="\t" if plain.endswith("tsv") else ",")
            writer.writeheader()
            writer.writerows(values)
        elif plain.endswith(".jsonl"):
            stream.writelines(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
        else:
            json.dump(values, stream, ensure_ascii=indent is None, indent=indent)
    return path


def write_meta(path: Path, parts: dict[str, tuple[Path, str, float]]) -> Path:
    """InternVL's meta file: name -> (annotation file beside it, picture folder, repeat)."""
    entries = {
        name: {"annotation": file.name, **({"root": root} if root else {}), "repeat_time": repeat}
        for name, (file, root, repeat) in parts.items()
    }
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


# --- parts of records ------------------------------------------------------------------------------------------------

FOLDER = "pictures"
"""The images folder as records name it."""
_SPEAKERS = {"user": "human", "assistant": "gpt", "system": "system"}


def _common(record: Record) -> Value:
    return {"id": record.id} | ({"category": record.category} if record.category else {})


def _system(record: Record) -> tuple[Value, Sequence[Any]]:
    """The system text apart from the other turns."""
    if record.turns[0].role == "system":
        return {"system": record.turns[0].text}, record.turns[1:]
    return {}, record.turns


def _names(files: Sequence[Any], folder: str = "") -> list[str]:
    start = f"{FOLDER}/{folder}/" if folder else f"{FOLDER}/"
    return [file.path.removeprefix(start) for file in files]


def _lists(record: Record) -> Value:
    named = {"images": _names(record.images), "videos": _names(record.videos)}
    return {key: names for key, names in named.items() if names}


def _parts(text: str) -> Iterator[str]:
    """The text cut at its placeholders."""
    return (part for part in _MEDIA.split(text) if part)


def _tagged(text: str) -> str:
    """The text with ms-swift's tags in place of names and boxes."""
    return _BOX.sub(lambda box: "<ref-object><bbox>" if box[1] else "<bbox>", text)


def _objects(record: Record) -> list[Value]:
    """Boxes as ms-swift 2 lists them; a thing at one place has four numbers, at several a list of such."""
    return [
        {"caption": box.ref, "bbox": list(box.bbox[0]) if len(box.bbox) == 1 else list(map(list, box.bbox)),
         "bbox_type": box.type, "image": box.image}
        for box in record.boxes
    ]  # fmt: skip
