"""A task of VLMEvalKit: a row of its TSV as question and accepted answers.

As ``ImageMCQDataset.build_prompt`` and ``split_MMMU`` of vlmeval/dataset/image_mcq.py (0.2) write them; other kinds of
tasks ask the question alone, and models' own wordings there are left out.
"""

from __future__ import annotations

import re
import string
from typing import Any

from vlmflow.field.cells import as_list, as_text

_PLACE = re.compile(r"<image (\d+)>")


def options(row: dict[str, Any]) -> dict[str, str]:
    """Letter -> text of the answers to choose from; none if the question is open."""
    found = {letter: as_text(row.get(letter)) for letter in string.ascii_uppercase}
    return {letter: text for letter, text in found.items() if text}


def question(row: dict[str, Any]) -> str:
    """The text of a question, with hint and options if it has any."""
    asked, choices, hint = as_text(row["question"]), options(row), as_text(row.get("hint"))
    if not choices:
        return asked
    lines = [f"Hint: {hint}"] if hint else []
    lines += [f"Question: {asked}", "Options:", *(f"{letter}. {text}" for letter, text in choices.items())]
    return "\n".join([*lines, "Please select the correct answer from the options above. \n"])


def accepted(row: dict[str, Any]) -> list[str]:
    """All right answers, the first of them the reference; for a choice its letter, then also letter and text."""
    answers, choices = as_list(row.get("answer")), options(row)
    if len(answers) == 1 and answers[0] in choices:
        (letter,) = answers
        return [letter, f"{letter}. {choices[letter]}", choices[letter]]
    return [answer for answer in dict.fromkeys(answers) if answer]


def placed(text: str, pictures: list[str]) -> tuple[str, list[str]]:
    """Text with ``<image>`` where pictures stand, and the pictures in that order.

    ``<image 2>`` stands for the second picture, as often as it is there; a text without any has them all before it.
    Raises :class:`IndexError` for a number that no picture has.
    """
    numbers = [int(number) for number in _PLACE.findall(text)]
    if not numbers or not pictures:
        return "<image>\n" * len(pictures) + text, pictures
    if not all(1 <= number <= len(pictures) for number in numbers):
        raise IndexError(f"<image {max(numbers)}> of {len(pictures)} pictures")
    return _PLACE.sub("<image>", text), [pictures[number - 1] for number in numbers]


def category(row: dict[str, Any]) -> str | None:
    """The group that a suite reports a row in."""
    return as_text(row.get("category")) or as_text(row.get("l2-category")) or None
