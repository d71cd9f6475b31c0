"""The samples of the report: which records are shown, their texts, and their pictures as data URIs."""

from __future__ import annotations

import base64
import hashlib
import io
from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from vlmflow.errors import UserError
from vlmflow.evaluation.compare import Run, outcome

LIMIT = 5_000
ORDER = ("worse", "still_wrong", "improved", "right")
"""Outcomes in the order of the page: what got worse comes first."""

PIXELATED = 64  # px: pictures up to this side are embedded as they are and enlarged with hard edges
_SIDES = ((1_000, 320), (LIMIT, 200))  # (pictures up to, longest side in px), so that the page stays near 30 MB
_LONGEST_TEXT = 4_000  # characters of a question or an answer
BLOCK = 64  # pictures of one block, which the page decodes together

Sample = dict[str, Any]


def samples(evaluations: dict[str, tuple[Run, Run]], limit: int = LIMIT) -> tuple[list[Sample], int]:
    """The samples to show, (before, after) of each evaluation side by side, and how many records there are.

    Over ``limit`` all regressions stay, and of the rest those with the smallest hash of (evaluation, id): a random
    sample that is the same every time.
    """
    found = [
        _sample(name, before.predictions[record], after.predictions[record], after.metrics[0])
        for name, (before, after) in evaluations.items()
        for record in before.predictions
    ]
    total = len(found)
    if total > limit:
        room = limit - sum(sample["outcome"] == "worse" for sample in found)
        rest = sorted((sample for sample in found if sample["outcome"] != "worse"), key=_draw)
        chosen = {id(sample) for sample in rest[: max(0, room)]}
        found = [sample for sample in found if sample["outcome"] == "worse" or id(sample) in chosen]
    return sorted(found, key=lambda sample: ORDER.index(sample["outcome"])), total


def counts(shown: list[Sample]) -> dict[str, int]:
    """Number of samples of each outcome, in the order of the page."""
    found = Counter(sample["outcome"] for sample in shown)
    return {name: found[name] for name in ORDER}


def embed_pictures(shown: list[Sample]) -> list[list[list[Any]]]:
    """Replace the samples' picture paths by numbers; return the pictures, ``[data URI, width, height]``, in blocks."""
    numbers: dict[str, int] = {}
    for sample in shown:
        sample["pictures"] = [numbers.setdefault(path, len(numbers)) for path in sample["pictures"]]
    side = next((side for most, side in _SIDES if len(numbers) <= most), _SIDES[-1][1])
    pictures = [data_uri(Path(path), side) for path in numbers]
    return [pictures[start : start + BLOCK] for start in range(0, len(pictures), BLOCK)]


def data_uri(path: Path, side: int) -> list[Any]:
    """A picture as ``[data URI, width, height]``: PNG when tiny, otherwise JPEG, at most ``side`` pixels long.

    Upright and in RGB, as the model gets it.
    """
    try:
        with Image.open(path) as opened:
            opened.draft("RGB", (side, side))
            picture = ImageOps.exif_transpose(opened).convert("RGB")
    except OSError as error:
        raise UserError(f"cannot read the picture: {error}", "validate the data again", file=path) from None
    tiny = max(picture.size) <= PIXELATED
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if tiny:
        picture.save(buffer, "PNG", optimize=True)
    else:
        picture.save(buffer, "JPEG", quality=78)
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return [f"data:image/{'png' if tiny else 'jpeg'};base64,{encoded}", *picture.size]


def _sample(evaluation: str, before: dict[str, Any], after: dict[str, Any], metric: str) -> Sample:
    first, second = before["scores"][metric], after["scores"][metric]
    return {
        "id": before["id"],
        "evaluation": evaluation,
        "category": before.get("category"),
        "outcome": outcome(first, second),
        "pictures": list(before.get("images") or []),
        "question": shown_text(before["question"].replace("<image>", "")),
        "reference": shown_text(before["reference"]),
        "before": shown_text(before["prediction"]),
        "after": shown_text(after["prediction"]),
        "scores": [first, second],
    }


def shown_text(text: str, longest: int = _LONGEST_TEXT) -> str:
    """``text`` without outer space, lone surrogates and what exceeds ``longest`` characters; a cut is said."""
    text = text.strip().encode("utf-8", "replace").decode("utf-8")
    if len(text) <= longest:
        return text
    return f"{text[:longest]} [... {len(text) - longest:,} more characters in the file]"


def _draw(sample: Sample) -> str:
    return hashlib.sha256(f"{sample['evaluation']}\0{sample['id']}".encode("utf-8", "replace")).hexdigest()
