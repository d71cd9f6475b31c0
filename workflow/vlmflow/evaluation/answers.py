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
_OF_A_RUN = ("checkpoint", "generation", "inputs", "engine")


class Answer(msgspec.Struct, frozen=True):
    """An answer as text, why it ends, its number of tokens, and a hash of the prompt's token ids."""

    prediction: str
    finish: str
    """``stop``: the model ended it; ``length``: it was cut off at ``max_new_tokens``."""
    tokens: int
    prompt: str


class _Line(Answer, frozen=True, kw_only=True):
    """An answer in a file, with its record's id."""

    id: str


class _File(msgspec.Struct, frozen=True):
    """A part of a run."""

    facts: dict[str, Any]
    answers: list[_Line]


def writable(answer: Answer) -> Answer:
    """The answer with question marks for halves of characters, which no file can hold."""
    text = answer.prediction.encode("utf-8", "replace").decode("utf-8")
    return msgspec.structs.replace(answer, prediction=text)


def read_facts(files: Sequence[Path]) -> dict[str, Any]:
    """What the answer files of one run say of checkpoint, settings, inputs and engine; ``seconds`` are added up.

    Raises :class:`UserError` if they are not parts of one run.
    """
    found = [_read(file).facts for file in files]
    for file, facts in zip(files, found, strict=True):
        if absent := [key for key in (*_OF_A_RUN, "seconds") if key not in facts]:
            raise UserError(f"no answers of a checkpoint: {absent[0]} is not told", _AGAIN, file=file)
        for key in _OF_A_RUN:
            if facts[key] != found[0][key]:
                reason = f"{key} is {facts[key]}, in {files[0]} it is {found[0][key]}"
                raise UserError(reason, "delete both and run snakemake again", file=file, field=key)
    return {**found[0], "seconds": round(sum(facts["seconds"] for facts in found), 1)}


def read_answers(files: Sequence[Path]) -> dict[str, Answer]:
    """Record id -> answer of all parts of a run. Raises :class:`UserError` for a record that is there twice."""
    answers: dict[str, Answer] = {}
    for file in files:
        for line in _read(file).answers:
            if line.id in answers:
                raise UserError("the record is answered twice", _AGAIN, file=file, record=line.id)
            answers[line.id] = writable(Answer(line.prediction, line.finish, line.tokens, line.prompt))
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


def _read(file: Path) -> _File:
    try:
        return msgspec.convert(read_json(file), _File)
    except msgspec.ValidationError as error:
        raise UserError(f"no answers of a checkpoint: {error}", _AGAIN, file=file) from None
