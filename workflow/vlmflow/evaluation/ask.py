"""One checkpoint answers the questions of one evaluation, or one part of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec

from vlmflow.errors import UserError
from vlmflow.evaluation.engines import Engine, Source
from vlmflow.evaluation.questions import Question, questions_of, read_evaluated, shard_of
from vlmflow.evaluation.store import AnswerStore
from vlmflow.files import read_manifest, write_text

logger = logging.getLogger(__name__)
_SPOKEN = 10.0  # seconds between two lines about progress


@dataclass(frozen=True)
class Part:
    """What is asked of whom: part ``shard`` (``I-of-N``) of an evaluation, written to ``output``.

    ``config``: split, limit, prompt, and the settings that the engine has; ``data`` is a manifest. Answers go to the
    folder ``cache`` as they come; what is there, of this model with these settings, is not asked again.
    """

    config: dict[str, Any]
    checkpoint: str
    data: Path
    shard: str
    cache: Path
    output: Path


def ask(part: Part, source: Source, facts: dict[str, Any], code: str, start: Callable[[], Engine]) -> None:
    """Write the answers of ``source`` to ``part``; the engine, of which ``facts`` tell, is only started if need be.

    ``code`` is the fingerprint of the engine's module: answers of other code are not taken.
    """
    records, started = read_evaluated(part.config, part.data), time.monotonic()
    questions = shard_of(questions_of(records, part.config["prompt"], part.checkpoint), part.shard)
    inputs = {name: read_manifest(place)["hash"] for name, place in vars(source).items() if place}
    generation = {key: part.config.get(key) for key in ("max_new_tokens", "max_tiles", "lmdeploy")}
    settings = {"inputs": inputs, "engine": facts, "generation": generation, "code": code}
    writer = f"{part.output.parents[2].name}.{part.checkpoint}.{part.shard}"
    with AnswerStore(part.cache, settings, writer) as store:
        waiting = {question.key for question in questions} - store.known.keys()
        logger.info("%d questions, %d of them to ask", len(questions), len(waiting))
        if waiting:
            _ask(start(), questions, store, len(waiting))
        answers = [{"id": each.id, **msgspec.to_builtins(store.known[each.key])} for each in questions]
    told = {
        "checkpoint": part.checkpoint,
        "generation": part.config,
        "inputs": {**inputs, "data": read_manifest(part.data)["hash"]},
        "engine": facts,
        "asked": len(waiting),
        "seconds": round(time.monotonic() - started, 1),
    }
    content = msgspec.json.format(msgspec.json.encode({"facts": told, "answers": answers}), indent=1)
    write_text(part.output, content.decode() + "\n")


def _ask(engine: Engine, questions: list[Question], store: AnswerStore, count: int) -> None:
    """Ask what ``store`` does not know, and say from time to time how far it is."""
    started = spoken = time.monotonic()
    done = 0
    try:
        for group in filter(None, engine.answer(questions, frozenset(store.known))):
            store.add(group)
            done, now = done + len(group), time.monotonic()
            if now - spoken > _SPOKEN or done == count:
                spoken, rate = now, done / (now - started)
                left = timedelta(seconds=round((count - done) / rate))
                logger.info("%d/%d answers, %.2f a second, %s left", done, count, rate, left)
    finally:
        engine.close()
    missing = [question.id for question in questions if question.key not in store.known]
    if missing:
        reason = f"the engine ended without an answer to {count - done} of {count} questions"
        raise UserError(reason, "run snakemake again: it goes on with the rest", record=missing[0])
