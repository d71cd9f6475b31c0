"""What a model is asked about a picture, and the form that its answer must have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_DEFAULT = Path(__file__).with_suffix(".txt")

_SPELLED_OUT = """\
Answer with a JSON object and nothing else: {"pairs": [{"question": "...", "answer": "..."}, ...]}. \
The list has exactly %d of these objects, in the order of the questions."""


def prompt_text(prompt: str | None, pairs: int) -> str:
    """The user's prompt, or that of prompt.txt, with the number of pairs in place of ``{pairs}``.

    Other braces stay as they are: a prompt may show JSON or code.
    """
    text = _DEFAULT.read_text(encoding="utf-8") if prompt is None else prompt
    return text.strip().replace("{pairs}", str(pairs))


def spelled_out(pairs: int) -> str:
    """The form of the answer in words, for a server that cannot be held to a JSON schema."""
    return _SPELLED_OUT % pairs


def answer_schema(pairs: int) -> dict[str, Any]:
    """JSON schema of an answer, in the part of JSON Schema that servers take with ``strict`` (all keys required)."""
    pair = {
        "type": "object",
        "properties": {
            "question": {"type": "string", "description": "A question about the picture."},
            "answer": {"type": "string", "description": "Its answer, from the picture alone."},
        },
        "required": ["question", "answer"],
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {"pairs": {"type": "array", "items": pair, "minItems": pairs, "maxItems": pairs}},
        "required": ["pairs"],
        "additionalProperties": False,
    }
