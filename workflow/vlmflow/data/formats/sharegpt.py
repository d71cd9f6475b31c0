"""ShareGPT as LLaMA-Factory and others extend it: ``conversations``, pictures in ``images``, perhaps ``system``."""

from __future__ import annotations

from vlmflow.data.formats.draft import ROLES, Draft, Format, Value, answers, identifier, names
from vlmflow.data.records import Turn


def _draft(value: Value) -> Draft:
    turns = [
        Turn(ROLES[turn.get("from") or turn["role"]], turn["value"] if "value" in turn else turn["content"])  # type: ignore[arg-type]
        for turn in value["conversations"]
    ]
    if value.get("system"):
        turns.insert(0, Turn("system", value["system"]))
    images, videos = names(value.get("images")), names(value.get("videos"))
    return Draft(identifier(value), turns, images, videos, category=value.get("category"), answers=answers(value))


def _turn_field(value: Value, index: int) -> str:
    index -= 1 if value.get("system") else 0
    if index < 0:
        return "system"
    return f"conversations[{index}].{'value' if 'value' in value['conversations'][index] else 'content'}"


SHAREGPT = Format("sharegpt", _draft, _turn_field, "images")
