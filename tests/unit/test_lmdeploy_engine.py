"""Our side of the LMDeploy engine, with a stand-in for LMDeploy: the real one is in tests/gpu/test_ask_lmdeploy.py."""

from __future__ import annotations

import asyncio
import importlib.metadata
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from conftest import make_tiny_data, make_tiny_model
from vlmflow.errors import UserError
from vlmflow.evaluation.answers import Answer
from vlmflow.evaluation.ask_lmdeploy import ask_lmdeploy
from vlmflow.evaluation.engines import Settings, Source, lmdeploy, prompt_hash
from vlmflow.evaluation.engines.lmdeploy import LmdeployEngine
from vlmflow.evaluation.questions import Question, questions_of, read_evaluated
from vlmflow.files import read_json
from vlmflow.models.directory import load_processor
from vlmflow.models.pictures import picture_lengths, pixel_values
from vlmflow.models.template import encode_prompt

OPTIONS = {"cache_share": 0.5, "cache_bits": 8, "max_batch_size": None}
CONFIG = {"split": "train", "limit": None, "prompt": None, "max_new_tokens": 6, "max_tiles": None, "lmdeploy": OPTIONS}


def said(index: int, tokens: list[int], finish: str | None = "stop", message: str | None = None) -> SimpleNamespace:
    """A response, as far as it is read."""
    return SimpleNamespace(index=index, token_ids=tokens, finish_reason=finish, error_message=message)


class Pipe:
    """Stands for LMDeploy's pipeline: makes every prompt as it does, and answers with what ``responses`` gives."""

    def __init__(self, folder: str, **options: Any) -> None:
        self.folder, self.options = folder, options
        self.async_engine = SimpleNamespace(prompt_processor=SimpleNamespace(get_prompt_input=None))
        self.responses: Callable[[list[dict[str, Any]]], Iterator[Any]] = lambda inputs: iter(
            [said(index, [70 + index]) for index in reversed(range(len(inputs)))]
        )
        self.inputs: list[dict[str, Any] | None] = []
        self.closed = False

    def stream_infer(self, prompts: list[Any], gen_config: Any, stream_response: bool) -> Iterator[Any]:
        """An error while a prompt is made becomes an error response."""
        assert gen_config == {"max_new_tokens": 6, "do_sample": False} and not stream_response
        asyncio.run(self._make(prompts))
        for response in self.responses(self.inputs):
            yield response if self.inputs[response.index] else said(response.index, [], "error", "internal error")

    async def _make(self, prompts: list[Any]) -> None:
        make = self.async_engine.prompt_processor.get_prompt_input
        made = await asyncio.gather(*(make(prompt, sequence_start=True) for prompt in prompts), return_exceptions=True)
        self.inputs = [None if isinstance(each, BaseException) else each for each in made]

    def close(self) -> None:
        self.closed = True


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("lmdeploy"), tie=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_data(tmp_path_factory.mktemp("asked") / "data", 14)


@pytest.fixture
def questions(data: Path) -> list[Question]:
    return questions_of(read_evaluated(CONFIG, data), None, "model-x")


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("lmdeploy")
    module.pipeline = Pipe  # type: ignore[attr-defined]
    for name in ("GenerationConfig", "PytorchEngineConfig"):
        setattr(module, name, dict)
    module.ChatTemplateConfig = lambda name, **given: {"name": name, **given}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lmdeploy", module)
    known = importlib.metadata.version
    monkeypatch.setattr(lmdeploy, "version", lambda name: "0.18.0" if name == "lmdeploy" else known(name))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.fixture
def engine(model: Path) -> Iterator[LmdeployEngine]:
    made = LmdeployEngine(Source(model), Settings(6, None), OPTIONS, 2)
    yield made
    made.close()
    assert made.pipe.closed


def answers(engine: LmdeployEngine, questions: list[Question], known: Collection[str] = ()) -> dict[str, Answer]:
    return {key: answer for group in engine.answer(questions, known) for key, answer in group.items()}


def test_it_is_started_as_the_configuration_says(engine: LmdeployEngine, model: Path) -> None:
    assert engine.pipe.folder == str(model.parent)
    assert engine.pipe.options["backend_config"] == {
        "dtype": "bfloat16", "tp": 2, "cache_max_entry_count": 0.5, "quant_policy": 8, "max_batch_size": None,
    }  # fmt: skip
    assert engine.pipe.options["chat_template_config"] == {"name": "hf", "model_path": str(model.parent)}


def test_it_gets_the_tokens_and_pixels_that_transformers_gets(
    engine: LmdeployEngine, questions: list[Question], model: Path
) -> None:
    found = answers(engine, questions)
    processor = load_processor(model)
    lengths = {question.key: picture_lengths(processor, question.sizes) for question in questions}
    ids = {each.key: encode_prompt(processor.tokenizer, each.turns, lengths[each.key]) for each in questions}
    pixels = {question.key: pixel_values(processor, question.pictures()) for question in questions}
    for key, given in zip(sorted(ids), engine.pipe.inputs, strict=True):
        assert given["input_ids"] == ids[key]
        (picture,) = given["multimodal"]
        assert torch.equal(picture["pixel_values"], pixels[key].to(torch.bfloat16))
        token, start, length = picture["image_token_id"], picture["offset"], picture["image_tokens"]
        assert ids[key][start : start + length] == [token] * length
        assert ids[key].count(token) == length
        assert found[key].prompt == prompt_hash(ids[key])


def test_answers_find_their_questions_in_any_order(engine: LmdeployEngine, questions: list[Question]) -> None:
    tokenizer = engine._tokenizer
    found = answers(engine, questions)
    assert {key: answer.prediction for key, answer in found.items()} == {
        key: tokenizer.decode([70 + index]) for index, key in enumerate(sorted(found))
    }
    assert len(found) == len(questions)
    assert {(answer.finish, answer.tokens) for answer in found.values()} == {("stop", 1)}


def test_only_what_is_not_known_is_asked(engine: LmdeployEngine, questions: list[Question]) -> None:
    known = {question.key for question in questions[:4]}
    assert answers(engine, questions, known).keys() == {question.key for question in questions} - known
    engine.pipe.inputs = []
    assert answers(engine, questions, {question.key for question in questions}) == {}
    assert engine.pipe.inputs == []


def test_an_answer_may_come_in_pieces(engine: LmdeployEngine, questions: list[Question]) -> None:
    pieces = [said(0, [70], None), said(1, [80, 81], None), said(0, [71], None), said(1, [82], "length"),
              said(0, [72])]  # fmt: skip
    engine.pipe.responses = lambda _: iter(pieces)
    found = answers(engine, questions[:2])
    first, second = (found[key] for key in sorted(found))
    assert (first.prediction, first.finish, first.tokens) == (engine._tokenizer.decode([70, 71, 72]), "stop", 3)
    assert (second.prediction, second.finish, second.tokens) == (engine._tokenizer.decode([80, 81, 82]), "length", 3)


def test_an_end_token_within_is_the_end(engine: LmdeployEngine, questions: list[Question]) -> None:
    engine.pipe.responses = lambda _: iter([said(0, [70, 2, 71], "length")])
    (answer,) = answers(engine, questions[:1]).values()
    assert (answer.prediction, answer.finish, answer.tokens) == (engine._tokenizer.decode([70]), "stop", 1)


def test_an_error_names_the_record_and_what_came_before_is_given(
    engine: LmdeployEngine, questions: list[Question]
) -> None:
    keys = sorted(question.key for question in questions)
    (name,) = [question.id for question in questions if question.key == keys[1]]
    gate = threading.Event()

    def responses(_: Any) -> Iterator[Any]:
        yield said(0, [70])
        gate.wait(10)
        yield said(1, [], "error", "out of memory")

    engine.pipe.responses = responses
    coming = engine.answer(questions, ())
    assert list(next(coming)) == keys[:1]
    gate.set()
    with pytest.raises(
        UserError, match=f"record {name}: LMDeploy gave no answer: out of memory\n    -> what was answe"
    ):
        next(coming)


def test_a_broken_picture_names_the_record(engine: LmdeployEngine, questions: list[Question]) -> None:
    broken = Path(questions[2].record.images[0].path)
    content = broken.read_bytes()
    broken.write_bytes(content[:30])
    try:
        with pytest.raises(UserError, match=rf"2\.png, record {questions[2].id}: cannot read the picture"):
            answers(engine, questions)
    finally:
        broken.write_bytes(content)


def test_an_engine_that_fails_is_one_clear_error(engine: LmdeployEngine, questions: list[Question]) -> None:
    def responses(_: Any) -> Iterator[Any]:
        yield said(0, [70])
        raise RuntimeError("CUDA error: an illegal memory access")

    engine.pipe.responses = responses
    with pytest.raises(UserError, match="LMDeploy failed: CUDA error: an illegal memory access"):
        answers(engine, questions)


def test_an_engine_that_died_is_not_waited_for_for_ever(
    engine: LmdeployEngine, questions: list[Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lmdeploy, "_PATIENCE", 0.3)
    gate = threading.Event()

    def responses(_: Any) -> Iterator[Any]:
        yield said(0, [70])
        gate.wait(10)

    engine.pipe.responses = responses
    started, found = time.monotonic(), dict[str, Answer]()
    monkeypatch.setattr(engine.pipe, "_make", lambda _: asyncio.sleep(0))
    engine.pipe.inputs = [{"input_ids": []}] * len(questions)
    engine._prompts = dict.fromkeys((question.key for question in questions), "h")
    with pytest.raises(UserError, match=r"gave no answer for 0 s; its engine died\n    -> run snakemake again"):
        for group in engine.answer(questions, ()):
            found |= group
    gate.set()
    assert len(found) == 1
    assert time.monotonic() - started < 5


def test_a_run_that_failed_goes_on(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, questions: list[Question]
) -> None:
    output = tmp_path / "e" / "model-x" / "answers" / "1-of-1.json"
    arguments = (CONFIG, model, "model-x", data, "1-of-1", 1, tmp_path / "cache", output)
    asked: list[int] = []

    def pipe(*given: Any, **options: Any) -> Pipe:
        made = Pipe(*given, **options)

        def responses(inputs: list[Any]) -> Iterator[Any]:
            asked.append(len(inputs))
            yield from (said(index, [70]) for index in range(2))
            if len(asked) == 1:
                raise RuntimeError("died")
            yield from (said(index, [70]) for index in range(2, len(inputs)))

        made.responses = responses
        return made

    monkeypatch.setattr(sys.modules["lmdeploy"], "pipeline", pipe)
    with pytest.raises(UserError, match="LMDeploy failed: died"):
        ask_lmdeploy(*arguments)
    ask_lmdeploy(*arguments)
    assert asked[0] == len(questions) and asked[1] in (len(questions), len(questions) - 2)
    told = read_json(output)
    assert [each["id"] for each in told["answers"]] == [question.id for question in questions]
    assert told["facts"]["engine"]["backend"] == "lmdeploy"


def test_what_lmdeploy_cannot_load_is_said_before_it_starts(
    model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"LMDeploy needs a GPU\n    -> set `backend: transformers`"):
        LmdeployEngine(Source(model), Settings(6, None), OPTIONS, 1)
    text = (model.parent / "config.json").read_text().replace('"clip_vision_model"', '"siglip_vision_model"')
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match="field vision_config: LMDeploy has no vision tower of type siglip_vision"):
        LmdeployEngine(Source(tmp_path / "manifest.json"), Settings(6, None), OPTIONS, 1)
