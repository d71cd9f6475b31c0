"""What the judge is asked about one answer, and the form of its verdict."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jsonschema

from vlmflow.data.report import shown
from vlmflow.endpoint.client import Form
from vlmflow.endpoint.reply import WrongFormError, read_value

DEFAULT = "vlmflow-judge-1"
"""Name of the text in prompt.txt: a change of the text needs a new one."""
SCORES = {"correct": 1.0, "partly": 0.5, "wrong": 0.0}
_SCHEMA = {
    "type": "object",
    "properties": {
        "reason": {"type": "string", "description": "Why, in one or two sentences."},
        "verdict": {"type": "string", "enum": list(SCORES)},
    },
    "required": ["reason", "verdict"],
    "additionalProperties": False,
}
_IN_WORDS = (
    'Answer with a JSON object and nothing else: {"reason": "...", "verdict": "..."}. '
    f"The verdict is one of {', '.join(SCORES)}."
)
_validator = jsonschema.Draft202012Validator(_SCHEMA)


class Prompt(NamedTuple):
    """Instructions for the judge: ``name`` is the version of ours, or ``own``."""

    name: str
    text: str

    @property
    def sha256(self) -> str:
        """Hexadecimal SHA-256 of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()


class Verdict(NamedTuple):
    """What the judge found; the score runs from 0 (wrong) to 1 (right)."""

    score: float
    reason: str


def instructions(own: str | None) -> Prompt:
    """The user's instructions, or those of prompt.txt."""
    if own is not None:
        return Prompt("own", own.strip())
    return Prompt(DEFAULT, Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").strip())


def full_prompt(prompt: Prompt, question: str, references: Sequence[str], answer: str) -> str:
    """Instructions, then the material, each part between lines with a mark that nothing in it can have foreseen.

    The mark is a hash of the material: no answer contains it, and equal material gives an equal prompt.
    """
    parts = [("question", question), *(("reference", text) for text in references), ("answer", answer)]
    mark = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    blocks = [f"<<<{name} {mark}>>>\n{text}\n<<<end of {name} {mark}>>>" for name, text in parts]
    return "\n\n".join([prompt.text, *blocks])


def read_verdict(text: str) -> Verdict:
    """The verdict in what the judge said; raises :class:`vlmflow.endpoint.reply.WrongFormError`."""
    value = read_value(text)
    error = jsonschema.exceptions.best_match(_validator.iter_errors(value))
    if error is not None or not isinstance(value, dict):
        raise WrongFormError(f"wrong form: {shown(error.message) if error else 'a list'}")
    return Verdict(SCORES[value["verdict"]], value["reason"].strip().encode("utf-8", "replace").decode())


def form() -> Form:
    """What the judge's answer must be."""
    return Form("verdict", _SCHEMA, _IN_WORDS, read_verdict, "use a stronger judge, or another prompt")
