"""Which of our prompt templates an official InternVL model was trained with, read from its files."""

from __future__ import annotations

import ast
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from vlmflow.errors import UserError
from vlmflow.files import read_json
from vlmflow.models.template import chat_template, template_names

logger = logging.getLogger(__name__)

TEMPLATES = {
    "internlm2-chat": ("internvl2", "internvl-v1.5"),
    "Hermes-2": ("hermes-2",),
    "phi3-chat": ("phi3-chat", "phi3-chat-v1.5"),
}
"""Name of a conversation in the official code -> ours; they differ in the system prompt."""
_TURNS = ("user", "assistant", "user")
_FAMILY = "internvl"


def own_template(folder: Path, official: Mapping[str, Any]) -> str:
    """The name of the template whose style is config.json's ``template`` and whose system prompt is conversation.py's.

    conversation.py is parsed, never run. Raises :class:`UserError` that names the choices if that does not tell.
    """
    style = str(official.get("template"))
    message = system_message(folder / "conversation.py", style)
    if message is not None:
        for name in TEMPLATES.get(style, ()):
            if _default_system(chat_template(name, _FAMILY), message):
                return name
    reason = (
        "conversation.py does not say its system prompt"
        if message is None
        else f"no template has the system prompt {message!r}"
    )
    choices = ", ".join(name for names in TEMPLATES.values() for name in names)
    raise UserError(
        f"unknown prompt template: it is '{style}', and {reason}",
        f"name the `template`: {choices} or internvl2-xtuner",
        file=folder,
        field="template",
    )


def prompt_facts(folder: Path, source: Path, official: Mapping[str, Any]) -> dict[str, str | None]:
    """Names of the prompt templates of a model directory and of its official files in ``source``, None if unknown.

    Warns if they differ: InternVL's own tools take theirs from conversation.py.
    """
    try:
        theirs: str | None = own_template(source, official)
    except UserError:
        theirs = None
    ours = _name_of(_stored(folder), theirs)
    if ours is None or ours != theirs:
        logger.warning(
            "the model has the prompt template '%s', its official files mean '%s': InternVL's own tools will "
            "ask with another prompt than it was trained with; change conversation.py beside the official files",
            ours or "unknown",
            theirs or "unknown",
        )
    return {"template": ours, "official_template": theirs}


def system_message(file: Path, style: str) -> str | None:
    """The system prompt of conversation ``style`` in an official conversation.py, None if it does not say."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last two: nested too deeply
        raise UserError(f"broken file: not Python code: {str(error) or 'nested too deeply'}", file=file) from None
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Conversation":
            values = {key.arg: _constant(key.value) for key in node.keywords}
            if values.get("name") == style:
                return values.get("system_message")
    return None


def _constant(node: ast.expr) -> str | None:
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError, MemoryError):
        return None
    return value if isinstance(value, str) else None


def _stored(folder: Path) -> str:
    """The chat template of a model directory, empty if it has none."""
    file, older = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    return str(read_json(older).get("chat_template") or "") if older.is_file() else ""


def _name_of(template: str, likely: str | None) -> str | None:
    """The name of the template that makes the same prompts; ``likely`` if that does too."""
    names = [name for name in template_names() if name != "plain"]
    found = [name for name in names if _prompts(chat_template(name, _FAMILY)) == _prompts(template)]
    found.sort(key=lambda name: chat_template(name, _FAMILY) != template)  # several may make the same prompts
    return likely if likely in found else next(iter(found), None)


def _prompts(template: str) -> list[str] | None:
    """What a chat template makes of a conversation with a system prompt of its own, without one and with the default.

    None if it refuses such a conversation.
    """
    turns = [{"role": role, "content": f"<image>\n{role}"} for role in _TURNS]
    own, none = ({"role": "system", "content": text} for text in ("own", ""))
    try:
        return _rendered(template, turns, [own, *turns], [none, *turns])
    except TemplateError:
        return None


def _default_system(template: str, message: str) -> bool:
    """Whether a template of ours puts ``message``, but for space around it, where there is no system prompt."""
    turn = {"role": "user", "content": "x"}
    default, given = _rendered(template, [turn], [{"role": "system", "content": message.strip()}, turn])
    return default == given


def _rendered(template: str, *conversations: list[dict[str, str]]) -> list[str]:
    texts, _ = render_jinja_template(
        list(conversations), chat_template=template, add_generation_prompt=True, bos_token="<bos>", eos_token="<eos>"
    )
    return list(texts)
