"""``messages`` of ms-swift 3, OpenAI and Hugging Face data sets: content is a text, or a list of typed parts."""

from __future__ import annotations

from typing import Any

from vlmflow.data.formats.draft import IMAGE, ROLES, VIDEO, Draft, Format, UnusableError, Value, answers, identifier
from vlmflow.data.formats.objects import read_objects
from vlmflow.data.records import Turn

_PLACEHOLDERS = {"image": IMAGE, "image_url": IMAGE, "video": VIDEO, "video_url": VIDEO}


def _draft(value: Value) -> Draft:
    draft = Draft(identifier(value), [])
    parts: dict[str, list[str]] = {IMAGE: [], VIDEO: []}
    for index, message in enumerate(value["messages"]):
        if message.get("loss") is False:
            advice = "leave the answer out, or train on it; answers that are not learnt are not supported"
            raise UnusableError("answer without loss: 'loss' is false", advice, f"messages[{index}].loss")
        text = _text(message["content"], parts, f"messages[{index}].content")
        draft.turns.append(Turn(ROLES[message["role"]], text))  # type: ignore[arg-type]
    draft.images = _listed(value, "images", parts[IMAGE])
    draft.videos = _listed(value, "videos", parts[VIDEO])
    draft.refs, draft.boxes = read_objects(value.get("objects"))
    draft.category = value.get("category")
    draft.answers = answers(value)
    return draft


def _text(content: str | list[Value], found: dict[str, list[str]], where: str) -> str:
    """Typed parts as text with placeholders; the files that they name go to ``found``."""
    if isinstance(content, str):
        return content
    texts = []
    for index, part in enumerate(content):
        if part["type"] == "text":
            texts.append(part["text"])
            continue
        placeholder = _PLACEHOLDERS[part["type"]]
        texts.append(placeholder)
        if (name := _name(part, f"{where}[{index}]")) is not None:
            found[placeholder].append(name)
    return "".join(texts)


def _name(part: Value, where: str) -> str | None:
    """The file that a part names; None when it stands for the next one of the record's list."""
    for key in (part["type"], "path", "url", "image", "video"):
        name = part.get(key)
        if isinstance(name, dict):
            name = name.get("url") or name.get("path")
        if isinstance(name, str) and name:
            if name.startswith(("http://", "https://", "data:")):
                advice = "download it into the data set's folder and name the file"
                raise UnusableError(f"not a file: {name[:60]}", advice, where)
            return name.removeprefix("file://")
    return None


def _listed(value: Value, key: str, parts: list[str]) -> list[str]:
    """The files under ``key`` or those that the parts name; both at once must agree."""
    listed = value.get(key)
    listed = [listed] if isinstance(listed, str | dict) else listed or []
    files = [_path(item, f"{key}[{index}]") for index, item in enumerate(listed)]
    if files and parts and files != parts:
        raise UnusableError(f"two ways of naming files: parts of a message and '{key}'", "name each file once", key)
    return files or parts


def _path(item: Any, where: str) -> str:
    path = item if isinstance(item, str) else item.get("path")
    if not isinstance(path, str):
        raise UnusableError(
            "picture without a path: its bytes are in the record", "write it to a file and name that", where
        )
    return path


def _turn_field(value: Value, index: int) -> str:
    del value
    return f"messages[{index}].content"


MESSAGES = Format("messages", _draft, _turn_field, "images")
