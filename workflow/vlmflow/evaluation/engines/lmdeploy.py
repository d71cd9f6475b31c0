"""Answers by LMDeploy's ``pipeline`` (PyTorch engine): one start, all prompts in flight.

LMDeploy would choose a prompt template by the name of the folder, cut every picture of a question into as many tiles as
one alone, and make pixels with torchvision, one question at a time. Here it gets token ids and pixel values that are
made as everywhere else in this project, by processes of their own: in threads they would keep the engine's loop, which
is one of this process, from running.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import queue
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vlmflow.errors import UserError
from vlmflow.evaluation.answers import Answer
from vlmflow.evaluation.ask import Part, ask
from vlmflow.evaluation.engines import Settings, Source, decode, end_tokens, prompt_hash, prompt_ids
from vlmflow.evaluation.questions import Question
from vlmflow.files import read_json
from vlmflow.fingerprint import fingerprint
from vlmflow.models.directory import load_processor
from vlmflow.models.pictures import picture_lengths, pixel_values
from vlmflow.models.template import picture_token

_PATIENCE = 600.0  # seconds without any answer, after which the engine counts as dead
_HALVES = ("float16", "bfloat16")
_CACHE_BITS = {16: 0, 8: 8, 4: 4}
_TOWERS = ("clip_vision_model", "internvl_vision")


def ask_lmdeploy(
    config: dict[str, Any], model: Path, checkpoint: str, data: Path, shard: str, gpus: int, cache: Path, output: Path
) -> None:
    """Write the answers of ``checkpoint`` to part ``shard`` of an evaluation (:class:`vlmflow.evaluation.ask.Part`).

    ``model`` is the manifest of a model directory, which ``gpus`` GPUs hold together. ``config``: split, limit, prompt,
    max_new_tokens, max_tiles, lmdeploy.
    """
    source, settings = Source(model), Settings(config["max_new_tokens"], config["max_tiles"])
    part, code = Part(config, checkpoint, data, shard, cache, output), fingerprint(Path(__file__))
    options = config["lmdeploy"]
    ask(part, source, lmdeploy_facts(source), code, lambda: LmdeployEngine(source, settings, options, gpus))


class LmdeployEngine:
    """A model directory in LMDeploy. ``options``: ``cache_share``, ``cache_bits`` and ``max_batch_size``."""

    def __init__(self, source: Source, settings: Settings, options: dict[str, Any], gpus: int) -> None:
        _check(source)
        from lmdeploy import ChatTemplateConfig, GenerationConfig, PytorchEngineConfig, pipeline

        folder = source.model.parent
        # before there is a GPU in this process: processes that are forked off later could not end
        self._makers = ProcessPoolExecutor(
            max(1, len(os.sched_getaffinity(0)) - 1), multiprocessing.get_context("fork"), _prepare, (source, settings)
        )
        self._makers.submit(os.getpid).result()  # starts one, and with it says what is wrong with the directory
        facts = lmdeploy_facts(source)
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
        self._tokenizer = load_processor(source.model).tokenizer
        self._ends = end_tokens(folder)
        self._asked: dict[str, Question] = {}
        self._prompts: dict[str, str] = {}
        self._failed: dict[str, Exception] = {}

    def answer(self, questions: Sequence[Question], known: Collection[str]) -> Iterator[Mapping[str, Answer]]:
        """The answers that are ready at a time."""
        self._asked = {question.key: question for question in questions if question.key not in known}
        keys = sorted(self._asked)
        if not keys:
            return
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
        self._makers.shutdown(wait=False, cancel_futures=True)
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
        making = asyncio.get_running_loop().run_in_executor(self._makers, _inputs, self._asked[key])
        try:
            made = await making
        except Exception as error:
            self._failed[key] = error
            raise
        self._prompts[key] = prompt_hash(made.ids)
        found = {"prompt": None, "input_ids": made.ids}
        if made.pixels is None:
            return found
        tokens = len(made.pixels) and sum(made.lengths) // len(made.pixels)  # of one tile
        parts = made.pixels.split([length // tokens for length in made.lengths])
        pictures = [
            {"pixel_values": part, "image_tokens": length, "image_token_id": made.token, "offset": start}
            for part, length, start in zip(parts, made.lengths, made.starts, strict=True)
        ]
        return {**found, "multimodal": pictures}


class _Made(NamedTuple):
    """A question as LMDeploy's picture models want it: token ids, tiles (n, 3, height, width), and of each picture its
    number of tokens and where they begin."""

    ids: list[int]
    pixels: torch.Tensor | None
    token: int
    lengths: list[int]
    starts: list[int]


_own: dict[str, Any] = {}
"""What a process that makes inputs has loaded."""


def _prepare(source: Source, settings: Settings) -> None:
    torch.set_num_threads(1)
    dtype = getattr(torch, lmdeploy_facts(source)["dtype"])
    _own.update(processor=load_processor(source.model), tiles=settings.max_tiles, dtype=dtype)


def _inputs(question: Question) -> _Made:
    processor, tiles = _own["processor"], _own["tiles"]
    ids = prompt_ids(processor, question, tiles)
    token = processor.tokenizer.convert_tokens_to_ids(picture_token(processor.tokenizer))
    lengths = picture_lengths(processor, question.sizes, tiles)
    pixels = pixel_values(processor, question.pictures(), tiles).to(_own["dtype"]) if lengths else None
    return _Made(ids, pixels, token, lengths, _starts(ids, token, lengths))


def lmdeploy_facts(source: Source) -> dict[str, Any]:
    """What answers depend on besides checkpoint and settings: number format and versions.

    LMDeploy computes in 16 bits; models in float32 are run in bfloat16, which has their range.
    """
    stored = read_json(source.model.parent / "config.json")["dtype"]
    return {
        "backend": "lmdeploy",
        "dtype": stored if stored in _HALVES else "bfloat16",
        "device": "cuda",
        "versions": {name: version(name) for name in ("lmdeploy", "transformers", "torch")},
    }


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
