"""What a checkpoint answered, as the stages after it read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from vlmflow.data.records import Record
from vlmflow.errors import UserError
from vlmflow.files import read_json

_AGAIN = "delete it and run snakemake again"


class Answer(msgspec.Struct, frozen=True):
    """An answer as text, why it ends, its number of tokens, and a hash of the prompt's token ids."""

    prediction: str
    finish: str
    """``stop``: the model ended it; ``length``: it was cut off at ``max_new_tokens``."""
    tokens: int
    prompt: str


def read_facts(files: Sequence[Path]) -> dict[str, Any]:
    """What the answer files of one run say of checkpoint, settings, inputs and engine; ``seconds`` are added up.

    Raises :class:`UserError` if they are not parts of one run.
    """
    found = [_read(file)["facts"] for file in files]
    for file, facts in zip(files, found, strict=True):
        for key in ("checkpoint", "generation", "inputs", "engine"):
            if facts.get(key) != found[0].get(key):
                reason = f"{key} is {facts.get(key)}, in {files[0]} it is {found[0].get(key)}"
                raise UserError(reason, "delete both and run snakemake again", file=file, field=key)
    return {**found[0], "seconds": round(sum(facts["seconds"] for facts in found), 1)}


def read_answers(files: Sequence[Path]) -> dict[str, Answer]:
    """Record id -> answer of all parts of a run. Raises :class:`UserError` for a record that is there twice."""
    answers: dict[str, Answer] = {}
    for file in files:
        for line in _read(file)["answers"]:
            try:
                name, answer = line["id"], msgspec.convert(line, Answer)
            except (KeyError, TypeError, msgspec.ValidationError) as error:
                raise UserError(f"not an answer: {error}", _AGAIN, file=file) from None
            if name in answers:
                raise UserError("the record is answered twice", _AGAIN, file=file, record=name)
            answers[name] = answer
    return answers


def prediction_lines(records: Sequence[Record], answers: Mapping[str, Answer]) -> list[dict[str, Any]]:
    """The lines of predictions.jsonl, not yet scored. Raises :class:`UserError` unless every record has one answer."""
    missing = [record.id for record in records if record.id not in answers]
    if missing or len(answers) != len(records):
        asked = {record.id for record in records}
        named = ", ".join((missing or [name for name in answers if name not in asked])[:5])
        what = f"{len(missing)} records have no answer" if missing else "answers of other records"
        raise UserError(f"{what}: {named}", "delete the folder of answers and run snakemake again")
    return [_line(record, answers[record.id]) for record in records]


def _line(record: Record, answer: Answer) -> dict[str, Any]:
    question, reference = record.turns[-2], record.turns[-1]
    further = {"references": [reference.text, *record.answers]} if record.answers else {}
    return {
        "id": record.id,
        "category": record.category,
        "images": [image.path for image in record.images],
        "sizes": [[image.width, image.height] for image in record.images],
        "question": question.text,
        "reference": reference.text,
        **further,
        "prediction": answer.prediction,
        "finish": answer.finish,
    }


def _read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = read_json(file)
    if not isinstance(content, dict) or not {"facts", "answers"} <= content.keys():
        raise UserError("no answers of a checkpoint", _AGAIN, file=file)
    return content
