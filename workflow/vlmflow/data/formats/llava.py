"""``conversations`` of LLaVA, XTuner and InternVL (their guides to fine-tuning on custom data)."""

from __future__ import annotations

from vlmflow.data.formats.draft import ROLES, Draft, Format, Value, answers, identifier, names
from vlmflow.data.records import Turn


def _draft(value: Value) -> Draft:
    turns = [Turn(ROLES[turn["from"]], turn["value"]) for turn in value["conversations"]]  # type: ignore[arg-type]
    if value.get("system"):
        turns.insert(0, Turn("system", value["system"]))
    images, videos = names(value.get("image")), names(value.get("video"))
    return Draft(identifier(value), turns, images, videos, category=value.get("category"), answers=answers(value))


def _turn_field(value: Value, index: int) -> str:
    index -= 1 if value.get("system") else 0
    return f"conversations[{index}].value" if index >= 0 else "system"


LLAVA = Format("llava", _draft, _turn_field, "image")
