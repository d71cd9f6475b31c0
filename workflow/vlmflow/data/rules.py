"""What makes an annotation a usable conversation: the schema, and what a schema cannot say."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from vlmflow.data.records import Turn
from vlmflow.data.report import shown

SCHEMA = Path(__file__).resolve().parents[2] / "schemas" / "llava.schema.yaml"
PLACEHOLDER = "<image>"
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_MEDIA = ("images", "img", "image_path", "image_file", "picture", "video", "videos")
"""Keys that other formats use for pictures; ignoring them would train without the pictures."""
_SPECIAL = re.compile(r"<\|[^|<>\s]{1,40}\|>|</?s>|</?img>|<IMG_CONTEXT>|<unk>|<pad>")
_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_JSON_TYPES = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}

Finding = tuple[str, str, str]
"""Reason (before its colon stands the kind), advice, field of the LLaVA record."""


@functools.cache
def schema() -> dict[str, Any]:
    """The JSON schema of one annotation (workflow/schemas/llava.schema.yaml)."""
    loaded: dict[str, Any] = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))
    return loaded


@functools.cache
def _validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(schema())


def findings(value: Any, placeholder: str) -> list[Finding]:
    """All that is wrong with one annotation; its content is looked at once its shape is right."""
    return list(dict.fromkeys(_wrong_shape(value))) or list(_wrong_content(value, placeholder))


def image_names(value: dict[str, Any]) -> tuple[str, ...]:
    """The picture names of an annotation of the right shape."""
    image = value.get("image") or []
    return (image,) if isinstance(image, str) else tuple(image)


def place(turns: list[Turn], count: int, placeholder: str) -> None:
    """Put ``count`` placeholders, a line each, before the first or last question."""
    asked = [index for index, turn in enumerate(turns) if turn.role == "user"]
    index = asked[0 if placeholder == "first" else -1]
    turns[index] = Turn("user", f"{PLACEHOLDER}\n" * count + turns[index].text)


def _wrong_shape(value: Any) -> Iterator[Finding]:
    for error in _validator().iter_errors(value):
        parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path)
        where = "".join(parts).lstrip(".")
        if error.validator == "required":
            missing = error.message.split("'")[1]
            near = difflib.get_close_matches(missing, [shown(key) for key in error.instance], n=1)
            yield f"missing key: '{missing}'", f"rename '{near[0]}'" if near else f"add '{missing}'", where
        elif error.validator == "enum":
            near = difflib.get_close_matches(str(error.instance).lower()[:80], ROLES, n=1, cutoff=0)
            advice = f"the nearest known role is '{near[0]}'; there are {', '.join(ROLES)}"
            yield f"unknown role: '{shown(error.instance)}'", advice, where
        elif error.validator == "type":
            types = [error.validator_value] if isinstance(error.validator_value, str) else error.validator_value
            found = _JSON_TYPES.get(type(error.instance), "number")
            yield f"wrong type: {found} instead of {' or '.join(types)}", "correct the value", where
        else:
            yield "empty value: nothing is given", "fill it in, or leave the key out where it is optional", where


def _wrong_content(value: dict[str, Any], placeholder: str) -> Iterator[Finding]:
    images, turns = image_names(value), value["conversations"]
    yield from _wrong_roles([ROLES[turn["from"]] for turn in turns])
    for where, text in (("id", value.get("id")), ("category", value.get("category")), *(("image", i) for i in images)):
        if _CONTROL.search(str(text)):
            yield f"control character in a name: {shown(text)}", "remove it", where
    for index, turn in enumerate(turns):
        for reason, advice in _wrong_text(ROLES[turn["from"]], turn["value"]):
            yield reason, advice, f"conversations[{index}].value"
    for key in _MEDIA:
        if value.get(key) and not images:
            yield f"pictures under another key: '{key}'", "name pictures under 'image'; videos are not read", key
    asked = sum(turn["value"].count(PLACEHOLDER) for turn in turns if ROLES[turn["from"]] == "user")
    if asked != len(images) and (asked or placeholder == "error"):
        each = f"write {PLACEHOLDER} into the questions once for each picture"
        advice = each if images else f"name the picture under 'image', or remove {PLACEHOLDER}"
        yield f"number of placeholders: {asked} for {len(images)} picture(s)", advice, "conversations"


def _wrong_roles(roles: list[str]) -> Iterator[Finding]:
    start = int(roles[0] == "system")
    for index, role in enumerate(roles[start:]):
        expected = ("user", "assistant")[index % 2]
        if role != expected:
            advice = "turns alternate human, gpt, human, gpt, ... after an optional system text; join or remove turns"
            yield f"wrong order of roles: {role} instead of {expected}", advice, f"conversations[{start + index}].from"
            return
    if roles[-1] != "assistant":
        yield "no answer: the assistant does not have the last word", "add the answer", "conversations"


def _wrong_text(role: str, text: str) -> Iterator[tuple[str, str]]:
    if not text.strip():
        yield "empty text: nothing to read or learn", "write the text, or remove the record"
    if special := _SPECIAL.search(text):
        yield f"special token in the text: {special[0]}", "remove it; the chat template adds such tokens itself"
    if role != "user" and PLACEHOLDER in text:
        yield f"placeholder outside a question: {PLACEHOLDER} from {role}", "move it to a question"
    if _SURROGATE.search(text):
        yield "broken character: half of a surrogate pair", "write the text anew as UTF-8"
