"""What can be reached without a language model: the most frequent answer, and the answer of the nearest picture."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageOps

from vlmflow.data.records import Image, Record, read_records
from vlmflow.errors import UserError
from vlmflow.evaluation.metrics import is_computed, perfect
from vlmflow.evaluation.scores import Prediction, score_predictions
from vlmflow.evaluation.statistics import mean_interval
from vlmflow.files import write_json

SIDE = 32
_CHUNK = 2_048  # pictures a side of one block of similarities (16 MB) and of its two blocks of vectors (25 MB each)


def evaluate_baselines(
    train: list[Path], test: Path, metrics: list[str], output: Path, limit: int | None = None, chinese: str = "keep"
) -> None:
    """Score both baselines on the first ``limit`` records of ``test`` and write them as JSON.

    ``majority`` gives the most frequent training answer to the same question, ``nearest_neighbour`` the answer of the
    training record with the same question whose first picture looks most alike. A question that training never asks
    gets the most frequent answer of all. Only the last answer of a record counts. Records without pictures are left
    out of ``nearest_neighbour``, which is null when none has one. Metrics that another stage makes (``judge``) are left
    out; both baselines are null when no other is named. ``chinese`` as in :func:`score_predictions`.
    """
    trained = [record for path in train for record in read_records(path)]
    tested = read_records(test)[:limit]
    if not trained:
        raise UserError("no training records", "check the split of the training data", file=train[0] if train else None)
    majority = majority_answers(trained, tested)
    seen = [place for place, record in enumerate(tested) if record.images]
    nearest = nearest_answers(trained, [tested[place] for place in seen])
    answers = [majority[place] if found is None else found for place, found in zip(seen, nearest, strict=True)]
    computed = [name for name in metrics if is_computed(name)]
    with_pictures = [tested[place] for place in seen]
    write_json(
        output,
        {
            "n": len(tested),
            "majority": _scored(tested, majority, computed, chinese) if computed else None,
            "nearest_neighbour": _scored(with_pictures, answers, computed, chinese) if computed and seen else None,
        },
    )


def majority_answers(train: list[Record], test: list[Record]) -> list[str]:
    """The most frequent training answer to each test record's question, ties in alphabetical order."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for record in train:
        answers[question(record)][answer(record)] += 1
    chosen = {key: _most_frequent(counter) for key, counter in answers.items()}
    overall = _most_frequent(sum(answers.values(), Counter()))
    return [chosen.get(question(record), overall) for record in test]


def nearest_answers(train: list[Record], test: list[Record]) -> list[str | None]:
    """The answer of the training record with the same question and the nearest first picture; None without one.

    Nearest by the cosine of the mean-removed pixels; the first of the training data among equals.
    """
    asked: dict[str, list[int]] = defaultdict(list)
    for position, record in enumerate(test):
        asked[question(record)].append(position)
    known: dict[str, list[Record]] = defaultdict(list)
    for record in train:
        if record.images and question(record) in asked:
            known[question(record)].append(record)
    thumbnails = _Thumbnails()
    found: list[str | None] = [None] * len(test)
    for key, candidates in known.items():
        left = thumbnails.of([test[position].images[0] for position in asked[key]])
        right = thumbnails.of([record.images[0] for record in candidates])
        for position, nearest in zip(asked[key], nearest_rows(left, right), strict=True):
            found[position] = answer(candidates[nearest])
    return found


def nearest_rows(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> list[int]:
    """For each row of ``left`` (pixels) the row of ``right`` with the largest cosine, in blocks that fit in memory."""
    nearest: list[int] = []
    for i in range(0, len(left), _CHUNK):
        queries = unit_vectors(left[i : i + _CHUNK])
        best = np.full(len(queries), -np.inf)
        place = np.zeros(len(queries), dtype=np.intp)
        for j in range(0, len(right), _CHUNK):
            similar = queries @ unit_vectors(right[j : j + _CHUNK]).T
            column = similar.argmax(axis=1)
            value = similar[np.arange(len(queries)), column]
            nearer = value > best
            best[nearer], place[nearer] = value[nearer], column[nearer] + j
        nearest += place.tolist()
    return nearest


def unit_vectors(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pixels (n, 3072) less their mean, at length 1; a picture of one colour becomes zeros."""
    centred = pixels.astype(np.float32)
    centred -= centred.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.divide(centred, length, out=np.zeros_like(centred), where=length > 1e-3)


def question(record: Record) -> str:
    """The last user turn, without picture placeholders."""
    return _last(record, "user").replace("<image>", "").strip()


def answer(record: Record) -> str:
    """The last assistant turn."""
    return _last(record, "assistant")


class _Thumbnails:
    """Pictures as rows of 32 x 32 RGB pixels; each is read once, however many records show it."""

    def __init__(self) -> None:
        self._rows: dict[str, NDArray[np.uint8]] = {}

    def of(self, images: list[Image]) -> NDArray[np.uint8]:
        return np.stack([self._row(image) for image in images])

    def _row(self, image: Image) -> NDArray[np.uint8]:
        if image.sha256 not in self._rows:
            try:
                with Pillow.open(image.path) as picture:
                    upright = ImageOps.exif_transpose(picture).convert("RGB")
            except OSError as error:
                raise UserError(
                    f"cannot read the picture: {error}", "validate the data again", file=image.path
                ) from None
            small = upright.resize((SIDE, SIDE), Pillow.Resampling.BICUBIC)
            self._rows[image.sha256] = np.asarray(small, dtype=np.uint8).reshape(-1)
        return self._rows[image.sha256]


def _scored(records: list[Record], answers: list[str], metrics: list[str], chinese: str) -> dict[str, Any]:
    """n, metrics, their 95% intervals (records on one picture kept together) and categories."""
    predictions = [_line(record, given) for record, given in zip(records, answers, strict=True)]
    scored, found = score_predictions(predictions, metrics, chinese)
    groups = [record.images[0].path if record.images else record.id for record in records]
    scores = {name: np.array([line["scores"][name] for line in scored]) for name in metrics}
    intervals = {name: mean_interval(values, groups, max(1.0, perfect(name))) for name, values in scores.items()}
    return {**found, "ci95": intervals}


def _line(record: Record, given: str) -> Prediction:
    return {
        "id": record.id,
        "category": record.category,
        "sizes": [[image.width, image.height] for image in record.images],
        "question": question(record),
        "reference": answer(record),
        "references": [answer(record), *record.answers],
        "prediction": given,
    }


def _most_frequent(answers: Counter[str]) -> str:
    return min(answers, key=lambda text: (-answers[text], text))


def _last(record: Record, role: str) -> str:
    texts = [turn.text for turn in record.turns if turn.role == role]
    if not texts:
        raise UserError(f"no {role} turn", "an evaluated record ends with a question and its answer", record=record.id)
    return texts[-1]
