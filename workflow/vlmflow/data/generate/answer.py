"""An answer of the model as question/answer pairs; whatever it wrote is untrusted."""

from __future__ import annotations

import functools
import re
from typing import Any, TypedDict

import jsonschema

from vlmflow.data.generate.prompt import answer_schema
from vlmflow.data.report import shown
from vlmflow.endpoint.reply import InvalidAnswerError, WrongFormError, read_value

_UNUSABLE = re.compile(
    r"<\|[^|<>\s]{1,40}\|>|<\uff5c[^<>\s]{1,40}\uff5c>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>"  # roles
    r"|<(?:unk|pad|bos|eos|image|video|audio|IMG_CONTEXT)>|</?(?:img|ref|box|quad)>"  # media, boxes
)
"""Tokens of the chat templates and tokenizers in use: which of them a model that is trained later has is not known."""
_BROKEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


class Pair(TypedDict):
    """A question about a picture with its answer."""

    question: str
    answer: str


def read_pairs(text: str, count: int) -> list[Pair]:
    """The ``count`` pairs in a model's answer: JSON, alone, in a code fence, or with words around it.

    Raises :class:`InvalidAnswerError`.
    """
    value = read_value(text)
    return check_pairs(value if isinstance(value, dict) else {"pairs": value}, count)


def check_pairs(value: Any, count: int) -> list[Pair]:
    """The pairs of a parsed answer, or :class:`InvalidAnswerError`: wrong form or number, empty, or unusable text."""
    error = jsonschema.exceptions.best_match(_validator(count).iter_errors(value))
    if error is not None and error.validator in ("minItems", "maxItems"):
        raise WrongFormError(f"{len(error.instance)} pairs instead of {count}")
    if error is not None:
        raise WrongFormError(f"wrong form: {shown(error.message)} at {error.json_path}")
    return [{"question": _usable(pair["question"]), "answer": _usable(pair["answer"])} for pair in value["pairs"]]


def _usable(text: str) -> str:
    text = text.strip()
    if not text:
        raise InvalidAnswerError("an empty question or answer")
    if found := _UNUSABLE.search(text):
        raise InvalidAnswerError(f"special token in the text: {found[0]}")
    if found := _BROKEN.search(text):
        raise InvalidAnswerError(f"broken or control character in the text: {shown(found[0])}")
    return text


@functools.cache
def _validator(count: int) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(answer_schema(count))
