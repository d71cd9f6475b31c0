"""The samples of the report: which records are shown, their texts and boxes, and their pictures as data URIs."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image, ImageOps

from vlmflow.errors import UserError
from vlmflow.evaluation.compare import Run, is_right, measure, outcome
from vlmflow.evaluation.metrics.grounding import read_boxes
from vlmflow.evaluation.summary import score

LIMIT = 5_000
OUTCOMES = {
    "worse": "Got worse",
    "still_wrong": "Still wrong",
    "improved": "Improved",
    "right": "Right both times",
}
"""What a reader calls the outcomes, in the order of the page: what got worse comes first."""
ORDER = tuple(OUTCOMES)

PIXELATED = 64  # px: pictures up to this side are embedded as they are and enlarged with hard edges
BLOCK = 64  # pictures of one block, which the page decodes together
_BOXES = 50  # of one answer that are drawn
_PIXELS = 130_000_000  # of all pictures together, so that the page stays below 30 MB
_SIDES = (96, 640)  # least and largest longest side of a picture, px
_LONGEST_TEXTS = (4_000, 2_000, 1_000, 500, 250)  # characters of a question or an answer
_TEXTS = 8_000_000  # characters of all texts together

Sample = dict[str, Any]


def samples(evaluations: dict[str, tuple[Run, Run]], limit: int = LIMIT) -> tuple[list[Sample], int]:
    """The samples to show, (before, after) of each evaluation side by side, and how many records there are.

    What changed most comes first in each outcome. Over ``limit`` all regressions stay, and of the rest those with the
    smallest hash of (evaluation, id): a random sample that is the same every time.
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
    _shorten(found)
    return sorted(found, key=lambda sample: (ORDER.index(sample["outcome"]), -abs(sample["change"]))), total


def counts(shown: list[Sample]) -> dict[str, int]:
    """Number of samples of each outcome, in the order of the page."""
    found = Counter(sample["outcome"] for sample in shown)
    return {name: found[name] for name in ORDER}


def embed_pictures(shown: list[Sample], folder: Path | None = None) -> list[list[list[Any]]]:
    """Replace the samples' picture paths by numbers; return the pictures, ``[data URI, width, height]``, in blocks.

    With ``folder``, that of the page, each sample gets links to its picture files.
    """
    numbers: dict[str, int] = {}
    for sample in shown:
        if folder and sample["pictures"]:
            sample["files"] = [[shown_text(Path(path).name), link(path, folder)] for path in sample["pictures"]]
        sample["pictures"] = [numbers.setdefault(path, len(numbers)) for path in sample["pictures"]]
    side = picture_side(len(numbers))
    pictures = [data_uri(Path(path), side) for path in numbers]
    return [pictures[start : start + BLOCK] for start in range(0, len(pictures), BLOCK)]


def picture_side(count: int) -> int:
    """Longest side, px, of each of ``count`` pictures."""
    least, largest = _SIDES
    return max(least, min(largest, math.isqrt(_PIXELS // max(1, count))))


def data_uri(path: Path, side: int) -> list[Any]:
    """A picture as ``[data URI, width, height]``: PNG when tiny, otherwise WebP, at most ``side`` pixels long.

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
        picture.save(buffer, "WEBP", quality=70, method=2)
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return [f"data:image/{'png' if tiny else 'webp'};base64,{encoded}", *picture.size]


def link(path: str | Path, folder: Path) -> str:
    """The address of a file as seen from a page in ``folder``."""
    return quote(Path(os.path.relpath(path, folder)).as_posix(), errors="replace")


def shown_text(text: str, longest: int = _LONGEST_TEXTS[0]) -> str:
    """``text`` without outer space, lone surrogates and what exceeds ``longest`` characters; a cut is said."""
    text = text.strip().encode("utf-8", "replace").decode("utf-8")
    if len(text) <= longest:
        return text
    return f"{text[:longest]} [... {len(text) - longest:,} more characters in the file]"


def _sample(evaluation: str, before: dict[str, Any], after: dict[str, Any], metric: str) -> Sample:
    ends = {"before": before, "after": after}
    scores = {end: line["scores"][metric] for end, line in ends.items()}
    found = {
        "id": shown_text(before["id"]),
        "evaluation": evaluation,
        "category": before.get("category") and shown_text(before["category"]),
        "outcome": outcome(scores["before"], scores["after"], metric),
        "pictures": list(before.get("images") or []),
        "question": before["question"].replace("<image>", ""),
        "reference": before["reference"],
        "before": before["prediction"],
        "after": after["prediction"],
        "scores": {end: _marked(value, metric) for end, value in scores.items()},
        "change": round(scores["after"] - scores["before"], 4),
    }
    further = {
        "also": list(before.get("references") or [])[1:],
        "cut": [end for end, line in ends.items() if line.get("finish") == "length"],
        "boxes": _boxes(found, before.get("sizes") or []),
    }
    return found | {key: value for key, value in further.items() if value}


def _marked(value: float, metric: str) -> tuple[str, str]:
    """``right``, ``wrong`` or ``partial``, and the score as it is written."""
    measured = measure(metric)
    wrong = value >= 1 if measured["better"] == "lower" else value <= 0
    return "right" if is_right(value, metric) else "wrong" if wrong else "partial", score(value, measured)


def _boxes(sample: Sample, sizes: list[list[int]]) -> dict[str, list[list[int]]]:
    """Whose answer -> its boxes as [x1, y1, x2, y2] in thousandths, read as the metrics read them, without those that
    have no area in the picture; none for several pictures, as a text does not say of which it tells."""
    if len(sample["pictures"]) != 1:
        return {}
    found = {}
    for kind in ("reference", "before", "after"):
        boxes = read_boxes(sample[kind], [(width, height) for width, height in sizes])[:_BOXES]
        corners = np.rint(1000 * boxes.clip(0, 1)).astype(int)
        found[kind] = corners[(corners[:, :2] < corners[:, 2:]).all(axis=1)].tolist()
    return found if any(found.values()) else {}


def _shorten(found: list[Sample]) -> None:
    """Cut the texts, at a length at which all of them together are not too many."""
    kinds = ("question", "reference", "before", "after")
    lengths = [len(text) for sample in found for text in (*(sample[kind] for kind in kinds), *sample.get("also", ()))]
    fitting = (longest for longest in _LONGEST_TEXTS if sum(min(length, longest) for length in lengths) <= _TEXTS)
    longest = next(fitting, _LONGEST_TEXTS[-1])
    for sample in found:
        sample |= {kind: shown_text(sample[kind], longest) for kind in kinds}
        if "also" in sample:
            sample["also"] = [shown_text(text, longest) for text in sample["also"]]


def _draw(sample: Sample) -> str:
    return hashlib.sha256(f"{sample['evaluation']}\0{sample['id']}".encode("utf-8", "replace")).hexdigest()
