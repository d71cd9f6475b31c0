"""JSON in what a model says, which is untrusted."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from vlmflow.data.report import shown

_FENCED = re.compile(r"```[a-zA-Z]*[ \t\r]*\n(.*?)```", re.DOTALL)


class InvalidAnswerError(Exception):
    """Why an answer cannot be used, in words for the user."""


class WrongFormError(InvalidAnswerError):
    """The answer does not have the form that the schema demands, so the server does not hold the model to it."""


def read_value(text: str) -> dict[str, Any] | list[Any]:
    """The JSON in a model's answer: alone, in a code fence, or with words around it.

    Raises :class:`WrongFormError`.
    """
    for candidate in _candidates(text):
        try:
            value = json.loads(candidate)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict | list):
            return value
    raise WrongFormError(f"not JSON: {shown(text) or 'nothing'}")


def _candidates(text: str) -> Iterator[str]:
    """The parts of an answer that can be the JSON, the likeliest first."""
    yield text
    yield from (match[1] for match in _FENCED.finditer(text))
    said = text.rpartition("</think>")[2]  # what a reasoning model thinks may hold braces, too
    yield said[said.find("{") : said.rfind("}") + 1]
