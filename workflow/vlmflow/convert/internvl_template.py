"""Which of our prompt templates an official InternVL model was trained with, read from its files."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlmflow.errors import UserError
from vlmflow.models.template import chat_template

TEMPLATES = {
    "internlm2-chat": ("internvl2", "internvl-v1.5"),
    "Hermes-2": ("hermes-2",),
    "phi3-chat": ("phi3-chat", "phi3-chat-v1.5"),
}
"""Name of a conversation in the official code -> ours; they differ in the system prompt."""


def own_template(folder: Path, official: Mapping[str, Any]) -> str:
    """The name of the template whose style is config.json's ``template`` and whose system prompt is conversation.py's.

    conversation.py is parsed, never run. Raises :class:`UserError` that names the choices if that does not tell.
    """
    style = str(official.get("template"))
    message = system_message(folder / "conversation.py", style)
    if message is not None:
        for name in TEMPLATES.get(style, ()):
            if _written(message) in chat_template(name, "internvl"):
                return name
    reason = "conversation.py does not say" if message is None else f"no template has the system prompt {message!r}"
    choices = ", ".join(name for names in TEMPLATES.values() for name in names)
    raise UserError(
        f"unknown prompt template: it is '{style}', and {reason} with which system prompt",
        f"name the `template`: {choices} or internvl2-xtuner",
        file=folder,
        field="template",
    )


def system_message(file: Path, style: str) -> str | None:
    """The system prompt of conversation ``style`` in an official conversation.py, None if it does not say."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (SyntaxError, ValueError) as error:
        raise UserError(f"broken file: not Python code: {error}", file=file) from None
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Conversation":
            values = {key.arg: _constant(key.value) for key in node.keywords}
            if values.get("name") == style:
                return values.get("system_message")
    return None


def _constant(node: ast.expr) -> str | None:
    try:
        value = ast.literal_eval(node)
    except ValueError:
        return None
    return value if isinstance(value, str) else None


def _written(text: str) -> str:
    """The text as it stands in a Jinja string."""
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("'", "\\'")
