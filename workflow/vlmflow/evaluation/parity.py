"""Do two engines say the same? Some of an evaluation's questions, asked again in transformers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlmflow.errors import UserError
from vlmflow.evaluation.answers import read_answers, read_facts
from vlmflow.evaluation.engines import Settings, Source
from vlmflow.evaluation.engines.transformers import TransformersEngine, transformers_facts
from vlmflow.evaluation.questions import Question, questions_of, read_evaluated
from vlmflow.files import write_json

logger = logging.getLogger(__name__)


def check_parity(
    config: dict[str, Any], model: Path, checkpoint: str, data: Path, answers: list[Path], batch_size: int, output: Path
) -> None:
    """Ask ``config["parity"]`` questions, spread evenly, in transformers, and compare with ``answers``.

    Raises :class:`UserError` if the token ids of a prompt differ: then the answers say nothing about the model.
    Answers may differ where two tokens are nearly as likely, as kernels round in different ways.
    """
    questions = _spread(questions_of(read_evaluated(config, data), config["prompt"], checkpoint), config["parity"])
    source, other = Source(model), read_answers(answers)
    if missing := [question.id for question in questions if question.id not in other]:
        raise UserError(
            "not answered", "delete the answers and run snakemake again", file=answers[0], record=missing[0]
        )
    engine = TransformersEngine(source, Settings(config["max_new_tokens"], config["max_tiles"]), batch_size)
    found = {key: answer for group in engine.answer(questions, ()) for key, answer in group.items()}
    for question in questions:
        if found[question.key].prompt != other[question.id].prompt:
            reason = "the two engines were asked in different words: the token ids of the prompt differ"
            raise UserError(reason, "delete the answers and run snakemake again", file=answers[0], record=question.id)
    different = [
        {"id": question.id, "transformers": found[question.key].prediction, "other": other[question.id].prediction}
        for question in questions
        if found[question.key].prediction != other[question.id].prediction
    ]
    equal = len(questions) - len(different)
    logger.info("%s: %d of %d answers are equal in both engines", checkpoint, equal, len(questions))
    write_json(
        output,
        {
            "checkpoint": checkpoint,
            "n": len(questions),
            "equal": equal,
            "engines": [transformers_facts(source), read_facts(answers)["engine"]],
            "differences": different,
        },
    )


def _spread(questions: Sequence[Question], count: int) -> list[Question]:
    """At most ``count`` of the questions, at equal distances."""
    step = max(1.0, len(questions) / count)
    places = (int(index * step) for index in range(count))
    return [questions[place] for place in places if place < len(questions)]
