"""F1 of answers that are sets: the things in a picture, the labels of a document."""

from __future__ import annotations

import json
import re

from vlmflow.evaluation.metrics.register import metric
from vlmflow.evaluation.metrics.text import normalise

_SEPARATOR = re.compile(r"[,，、;；\n]")
_THOUSANDS = re.compile(r"(?<![\d,])\d{1,3}(?:,\d{3})+(?!,?\d)")
_BULLET = re.compile(r"^[ \t]*(?:[-*•][ \t]|\d{1,3}[.)、](?!\d)(?=[ \t]*\S))", re.MULTILINE)
_AND = re.compile(r"\s*(?:and|or)\s")
_FENCE = re.compile(r"^```\w*\n(.*)\n```$", re.DOTALL)


@metric("set_f1")
def set_f1(prediction: str, reference: str) -> float:
    """2 x common members / all members of both, 1 when both are empty; order, case and repetition do not count."""
    given, wanted = members(prediction), members(reference)
    if not given and not wanted:
        return 1.0
    return 2 * len(given & wanted) / (len(given) + len(wanted))


def members(text: str) -> frozenset[str]:
    """The members of a JSON list, or of a text with ``, ， 、 ; ；`` or line ends between them, normalised.

    Bullets and numbers of a list are no members; ``1,000`` is one, and 1000.
    """
    listed = _json_list(text)
    parts = listed if listed is not None else map(_without_and, _SEPARATOR.split(_BULLET.sub("", _plain(text))))
    return frozenset(part for part in map(normalise, map(_plain, parts)) if part)


def _plain(text: str) -> str:
    """Numbers without commas between thousands."""
    return _THOUSANDS.sub(lambda number: number[0].replace(",", ""), text)


def _without_and(part: str) -> str:
    """The last member of ``a, b, and c``."""
    return part[joined.end() :] if (joined := _AND.match(part)) else part


def _json_list(text: str) -> list[str] | None:
    text = text.strip()
    text = fenced[1].strip() if (fenced := _FENCE.match(text)) else text
    if not text.startswith("["):
        return None
    try:
        listed = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return [item if isinstance(item, str) else json.dumps(item, ensure_ascii=False) for item in listed]
