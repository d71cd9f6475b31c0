"""``query`` and ``response`` of ms-swift 2 (its InternVL guide and swift/llm/utils/template.py)."""

from __future__ import annotations

import re

from vlmflow.data.formats.draft import IMAGE, VIDEO, Draft, Format, UnusableError, Value, answers, identifier, names
from vlmflow.data.formats.objects import read_objects
from vlmflow.data.records import Turn

_TAG = re.compile(r"<(img|video)>(.*?)</\1>", re.DOTALL)


def _draft(value: Value) -> Draft:
    said = [(text, role) for pair in value.get("history") or [] for text, role in zip(pair, _PAIR, strict=True)]
    said += [(value["query"], "user"), (value["response"], "assistant")]
    draft = Draft(identifier(value), [Turn("system", value["system"])] if value.get("system") else [])
    draft.images, draft.videos = _files(value.get("images")), _files(value.get("videos"))
    tagged: dict[str, list[str]] = {"img": [], "video": []}
    for text, role in said:
        draft.turns.append(Turn(role, _untagged(text, tagged) if role == "user" else text))  # type: ignore[arg-type]
    for key, tag in (("images", "img"), ("videos", "video")):
        if tagged[tag] and getattr(draft, key):
            advice = f"use <{tag}> tags in all places, or the list '{key}' with placeholders"
            raise UnusableError(f"two ways of naming files: <{tag}> tags and '{key}'", advice, key)
    draft.images, draft.videos = draft.images or tagged["img"], draft.videos or tagged["video"]
    draft.refs, draft.boxes = read_objects(value.get("objects"))
    draft.category = value.get("category")
    draft.answers = answers(value)
    return draft


_PAIR = ("user", "assistant")


def _files(value: str | list[str] | None) -> list[str]:
    """A list of names, or one text with commas between them."""
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else names(value)


def _untagged(text: str, found: dict[str, list[str]]) -> str:
    """``<img>path</img>`` as a placeholder; the paths go to ``found``."""

    def placeholder(match: re.Match[str]) -> str:
        found[match[1]].append(match[2].strip())
        return IMAGE if match[1] == "img" else VIDEO

    return _TAG.sub(placeholder, text) if "</" in text else text


def _turn_field(value: Value, index: int) -> str:
    index -= 1 if value.get("system") else 0
    if index < 0:
        return "system"
    history = value.get("history") or []
    if index < 2 * len(history):
        return f"history[{index // 2}][{index % 2}]"
    return ("query", "response")[index % 2]


SWIFT = Format("swift", _draft, _turn_field, "images")
