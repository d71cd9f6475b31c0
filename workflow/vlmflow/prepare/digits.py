"""Handwritten digits: the 1,797 test pictures of UCI's optdigits as scikit-learn ships them (8 x 8, 17 grey levels).

Source: E. Alpaydin, C. Kaynak (1998), Optical Recognition of Handwritten Digits, CC BY 4.0.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from vlmflow.errors import UserError
from vlmflow.files import read_manifest, staged_directory, write_json, write_manifest

MEMBER = "sklearn/datasets/data/digits.csv.gz"
_SIDE, _INK = 8, 16  # pixels, and the value of the darkest
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class _Question:
    category: str
    text: str
    answer: Callable[[int], str]


_NAME = _Question("which digit", "What digit is this?", lambda digit: _WORDS[digit])
_QUESTIONS = (
    _NAME,
    _Question("even or odd", "Is this digit even or odd?", lambda digit: "odd" if digit % 2 else "even"),
    _Question("greater than four", "Is this digit greater than four?", lambda digit: "yes" if digit > 4 else "no"),
)


def prepare_digits(source: Path, output: Path) -> None:
    """Write ``images/NNNN.png`` (mode L, dark on white), ``names.json`` and ``questions.json`` beside ``output``.

    ``names.json`` asks for the digit in every picture; ``questions.json`` asks one of three questions, in turn. Raises
    :class:`UserError` when the raw file is not the one that scikit-learn ships.
    """
    read_manifest(source)
    digits = _read(source.parent / MEMBER)
    with staged_directory(output.parent) as directory:
        (directory / "images").mkdir()
        for index, (pixels, _) in enumerate(digits):
            Image.frombytes("L", (_SIDE, _SIDE), pixels).save(directory / _picture(index))
        labels = [label for _, label in digits]
        write_json(directory / "names.json", [_record(i, label, _NAME) for i, label in enumerate(labels)])
        write_json(directory / "questions.json", list(_in_turn(labels)))
        write_manifest(directory, prepared="digits")


def _read(path: Path) -> list[tuple[bytes, int]]:
    """(64 grey values, row by row, 255 is white; label 0 to 9) of each picture."""
    try:
        with gzip.open(path, "rt", encoding="ascii", newline="") as stream:
            rows = [[int(value) for value in row] for row in csv.reader(stream)]
        return [(bytes(255 - round(value * 255 / _INK) for value in row[:-1]), _label(row)) for row in rows]
    except (OSError, EOFError, ValueError, csv.Error, zlib.error) as error:
        advice = f"`source` must hold {MEMBER} of scikit-learn, as the demo's configuration does"
        raise UserError(f"cannot read the digits: {error}", advice, file=path) from error


def _label(row: list[int]) -> int:
    if len(row) != _SIDE * _SIDE + 1 or not 0 <= row[-1] < len(_WORDS):
        raise ValueError(f"a row of {len(row)} values that ends in {row[-1:]}")
    return row[-1]


def _picture(index: int) -> str:
    return f"images/{index:04d}.png"


def _in_turn(labels: list[int]) -> Iterable[dict[str, Any]]:
    for index, label in enumerate(labels):
        yield _record(index, label, _QUESTIONS[index % len(_QUESTIONS)])


def _record(index: int, label: int, question: _Question) -> dict[str, Any]:
    return {
        "id": f"digit-{index:04d}",
        "image": _picture(index),
        "category": question.category,
        "conversations": [
            {"from": "human", "value": f"<image>\n{question.text}"},
            {"from": "gpt", "value": question.answer(label)},
        ],
    }
