"""Token ids and pixels of questions, made while the model is busy with others."""

from __future__ import annotations

import functools
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vlmflow.errors import UserError
from vlmflow.evaluation.engines import Settings
from vlmflow.evaluation.questions import Question
from vlmflow.files import read_json
from vlmflow.models.directory import load_processor
from vlmflow.models.pictures import picture_lengths, pixel_values
from vlmflow.models.template import count, encode_prompt


class Made(NamedTuple):
    """A question as a model gets it."""

    ids: list[int]
    pixels: torch.Tensor | None
    """(tiles, 3, height, width), None without pictures."""
    lengths: list[int]
    """Tokens of each picture."""


class Inputs:
    """Makes inputs for the model of manifest ``model``, with pixels in ``dtype``, ahead of their use.

    Beside a GPU that is the work of processes: a model's own loop, in this one, would wait for threads that need the
    interpreter. They are forked off here, which has to be before this process uses the GPU. A CPU that computes the
    answers has no core to spare, and one thread does it.
    """

    def __init__(self, model: Path, settings: Settings, dtype: torch.dtype) -> None:
        self._settings, self._processor = settings, load_processor(model)
        self.tokenizer = self._processor.tokenizer
        self._context = context_length(read_json(model.parent / "config.json")["text_config"])
        self._pool: Executor
        if torch.cuda.is_available():
            started = (model, settings.max_tiles, dtype)
            workers = max(1, len(os.sched_getaffinity(0)) - 1)
            self._pool = ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), _start, started)
            self._pool.submit(os.getpid).result()  # they start with the first piece of work
            self._make: Any = _make_here
        else:
            self._pool = ThreadPoolExecutor(1)
            self._make = functools.partial(make, self._processor, settings.max_tiles, dtype)

    def submit(self, question: Question) -> Future[Made]:
        """Begin to make the inputs of a question."""
        return self._pool.submit(self._make, question)

    def lengths(self, questions: Sequence[Question]) -> list[int]:
        """Tokens of each question's prompt, pictures included; all but the few that ask for the answer.

        Raises :class:`UserError` for one that does not fit into the model's context together with its answer.
        """
        texts, tiles = count(self.tokenizer, [each.turns for each in questions]), self._settings.max_tiles
        pictures = (sum(picture_lengths(self._processor, each.sizes, tiles)) for each in questions)
        found = [counted.text + tokens for counted, tokens in zip(texts, pictures, strict=True)]
        for question, length in zip(questions, found, strict=True):
            if length + self._settings.max_new_tokens > self._context:
                reason = f"{length} tokens and an answer of up to {self._settings.max_new_tokens} do not fit"
                advice = "shorten the record or leave it out; or lower `max_new_tokens` or `max_tiles`"
                raise UserError(f"{reason} into the model's {self._context}", advice, record=question.id)
        return found

    def close(self) -> None:
        """End the processes."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def context_length(text_config: dict[str, Any]) -> int:
    """Tokens that a language model can take; dynamic scaling of its positions takes ``factor`` times those it has."""
    rope = text_config.get("rope_parameters") or text_config.get("rope_scaling") or {}
    factor = rope.get("factor", 1) if rope.get("rope_type", rope.get("type")) == "dynamic" else 1
    return int(text_config["max_position_embeddings"] * factor)


def make(processor: Any, max_tiles: int | None, dtype: torch.dtype, question: Question) -> Made:
    """The inputs of one question. A failure is a :class:`UserError` that names the record."""
    lengths = picture_lengths(processor, question.sizes, max_tiles)
    try:
        ids = encode_prompt(processor.tokenizer, question.turns, lengths)
        pictures = question.pictures()
    except UserError as error:
        problem = error.problem
        raise UserError(problem.reason, problem.advice, file=problem.file, record=question.id) from None
    pixels = pixel_values(processor, pictures, max_tiles).to(dtype) if pictures else None
    return Made(ids, pixels, lengths)


_own: dict[str, Any] = {}
"""How this process makes inputs, if :class:`Inputs` started it."""


def _start(model: Path, max_tiles: int | None, dtype: torch.dtype) -> None:
    torch.set_num_threads(1)
    _own["make"] = functools.partial(make, load_processor(model), max_tiles, dtype)


def _make_here(question: Question) -> Made:
    made: Made = _own["make"](question)
    return made
