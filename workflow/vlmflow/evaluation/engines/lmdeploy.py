"""Answers by LMDeploy's ``pipeline`` (PyTorch engine): one start, all prompts in flight.

LMDeploy would choose a prompt template by the name of the folder, cut every picture of a question into as many tiles as
one alone, and make pixels with torchvision, one question at a time. Here it gets token ids and pixel values that are
made as everywhere else in this project, by processes of their own: in threads they would keep the engine's loop, which
is one of this process, from running.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from vlmflow.errors import UserError
from vlmflow.evaluation.answers import Answer
from vlmflow.evaluation.engines import Settings, Source, decode, end_tokens, prompt_hash
from vlmflow.evaluation.engines.inputs import Inputs
from vlmflow.evaluation.questions import Question
from vlmflow.files import read_json
from vlmflow.models.template import picture_token

_PATIENCE = 600.0  # seconds without any answer, after which the engine counts as dead
_HALVES = ("float16", "bfloat16")
_CACHE_BITS = {16: 0, 8: 8, 4: 4}
_TOWERS = ("clip_vision_model", "internvl_vision")


class LmdeployEngine:
    """A model directory in LMDeploy. ``options``: ``cache_share``, ``cache_bits`` and ``max_batch_size``."""

    def __init__(self, source: Source, settings: Settings, options: dict[str, Any], gpus: int) -> None:
        _check(source)
        from lmdeploy import ChatTemplateConfig, GenerationConfig, PytorchEngineConfig, pipeline

        folder = source.model.parent
        facts = lmdeploy_facts(source)
        self._inputs = Inputs(source.model, settings, getattr(torch, facts["dtype"]))
        engine = PytorchEngineConfig(
            dtype=facts["dtype"],
            tp=gpus,
            cache_max_entry_count=options["cache_share"],
            quant_policy=_CACHE_BITS[options["cache_bits"]],
            max_batch_size=options["max_batch_size"],
        )
        template = ChatTemplateConfig("hf", model_path=str(folder))
        self.pipe = pipeline(str(folder), backend_config=engine, chat_template_config=template, log_level="ERROR")
        self.pipe.async_engine.prompt_processor.get_prompt_input = self._prompt_input
        self._greedy = GenerationConfig(max_new_tokens=settings.max_new_tokens, do_sample=False)
        self._tokenizer = self._inputs.tokenizer
        self._picture_token = self._tokenizer.convert_tokens_to_ids(picture_token(self._tokenizer))
        self._ends = end_tokens(folder)
        self._several = gpus > 1
        self._asked: dict[str, Question] = {}
        self._prompts: dict[str, str] = {}
        self._failed: dict[str, Exception] = {}

    def answer(self, questions: Sequence[Question], known: Collection[str]) -> Iterator[Mapping[str, Answer]]:
        """The answers that are ready at a time."""
        self._asked = {question.key: question for question in questions if question.key not in known}
        keys = sorted(self._asked)
        if not keys:
            return
        self._inputs.lengths(list(self._asked.values()))  # says what is too long before anything is asked
        responses = self.pipe.stream_infer(
            [[{"role": "user", "content": key}] for key in keys], gen_config=self._greedy, stream_response=False
        )
        tokens: dict[str, list[int]] = {key: [] for key in keys}  # an answer may come in pieces
        for ready in _patiently(responses):
            for response in ready:
                tokens[keys[response.index]] += response.token_ids
            ended = [(keys[response.index], response) for response in ready if response.finish_reason]
            yield {key: self._read(key, tokens.pop(key), response) for key, response in ended}

    def close(self) -> None:
        """Stop the engine."""
        self._inputs.close()
        self.pipe.close()

    def _read(self, key: str, tokens: list[int], response: Any) -> Answer:
        if key in self._failed:  # which LMDeploy calls an internal error
            raise self._failed[key]
        if response.finish_reason == "error":
            reason = f"LMDeploy gave no answer: {response.error_message or 'internal error'}"
            raise UserError(reason, "what was answered is kept; its log is above", record=self._asked[key].id)
        # LMDeploy leaves out the end token
        whole = [*tokens, min(self._ends)] if response.finish_reason == "stop" else tokens
        return decode(self._tokenizer, whole, self._ends, self._prompts.pop(key))

    async def _prompt_input(self, prompt: list[dict[str, Any]], **_: Any) -> dict[str, Any]:
        """In the place of LMDeploy's own: the ids and pixels of a question, which goes by its key."""
        key = prompt[0]["content"]
        try:
            made = await asyncio.wrap_future(self._inputs.submit(self._asked[key]))
        except Exception as error:
            self._failed[key] = error
            raise
        self._prompts[key] = prompt_hash(made.ids)
        found = {"prompt": None, "input_ids": made.ids}
        if made.pixels is None:
            return found
        tile = sum(made.lengths) // len(made.pixels)  # tokens of one
        # what this process shares with those that made it cannot be handed on to LMDeploy's, one for each GPU
        pixels = made.pixels.clone() if self._several else made.pixels
        parts = pixels.split([length // tile for length in made.lengths])
        starts = _starts(made.ids, self._picture_token, made.lengths)
        pictures = [
            {"pixel_values": part, "image_tokens": length, "image_token_id": self._picture_token, "offset": start}
            for part, length, start in zip(parts, made.lengths, starts, strict=True)
        ]
        return {**found, "multimodal": pictures}


def lmdeploy_facts(source: Source) -> dict[str, Any]:
    """What answers depend on besides checkpoint and settings: number format and versions.

    LMDeploy computes in 16 bits; models in float32 are run in bfloat16, which has their range.
    """
    stored = read_json(source.model.parent / "config.json")["dtype"]
    return {
        "backend": "lmdeploy",
        "dtype": stored if stored in _HALVES else "bfloat16",
        "device": "cuda",
        "versions": {name: _version(name) for name in ("lmdeploy", "transformers", "torch")},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        advice = "run snakemake with --sdm conda, or load a module that has it (docs/environments.md)"
        raise UserError(f"{package} is not installed where this runs", advice) from None


def _check(source: Source) -> None:
    """Raise :class:`UserError` for what LMDeploy cannot load, before it says so in other words."""
    tower = read_json(source.model.parent / "config.json")["vision_config"]["model_type"]
    if tower not in _TOWERS:
        reason = f"LMDeploy has no vision tower of type {tower} in models of this family"
        raise UserError(reason, "set `backend: transformers`", file=source.model.parent, field="vision_config")
    if not torch.cuda.is_available():
        raise UserError("LMDeploy needs a GPU", "set `backend: transformers`, or ask for a GPU in `resources`")


def _starts(ids: Sequence[int], token: int, lengths: Sequence[int]) -> list[int]:
    """Where the tokens of each picture begin."""
    starts, place = [], 0
    for length in lengths:
        place = list(ids).index(token, place)
        starts.append(place)
        place += length
    return starts


def _patiently(responses: Iterator[Any]) -> Iterator[list[Any]]:
    """``responses``, those that are ready together; a :class:`UserError` when none comes for a long time.

    An engine that died says nothing.
    """
    waiting: queue.Queue[Any] = queue.Queue()

    def take() -> None:
        try:
            for response in responses:
                waiting.put(response)
        except Exception as error:
            waiting.put(error)
        waiting.put(None)

    threading.Thread(target=take, daemon=True).start()
    ended = False
    while not ended:
        ready = []
        try:
            ready.append(waiting.get(timeout=_PATIENCE))
            while True:
                ready.append(waiting.get_nowait())
        except queue.Empty:
            if not ready:
                advice = "run snakemake again: it goes on with the rest; if it stops again, lower `cache_share`"
                reason = f"LMDeploy gave no answer for {_PATIENCE:.0f} s; its engine died"
                raise UserError(reason, advice) from None
        errors = [response for response in ready if isinstance(response, Exception)]
        if errors:
            raise UserError(f"LMDeploy failed: {errors[0]}", "what was answered is kept; its log is above")
        ended = None in ready
        if answers := [response for response in ready if response is not None]:
            yield answers
