"""Asking a checkpoint in transformers: batches, parts, what is kept, what goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as Pictures

from conftest import make_tiny_model
from vlmflow.data.records import Image, Record, Turn, write_records
from vlmflow.errors import UserError
from vlmflow.evaluation import ask as asking
from vlmflow.evaluation import engines
from vlmflow.evaluation.answers import Answer, read_answers
from vlmflow.evaluation.ask_transformers import ask_transformers
from vlmflow.evaluation.engines import Settings, Source, transformers
from vlmflow.evaluation.engines.inputs import context_length
from vlmflow.evaluation.engines.transformers import TransformersEngine, in_batches
from vlmflow.evaluation.questions import Question, questions_of, read_evaluated
from vlmflow.files import read_json, sha256_file, write_manifest

CONFIG = {"split": "test", "limit": None, "prompt": None, "max_new_tokens": 8, "max_tiles": None}
COUNT = 13
Options = Callable[..., dict[str, Any]]
Asked = Callable[..., Path]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifest of a random LLaVA that says more than its last token again."""
    return make_tiny_model(tmp_path_factory.mktemp("untied"), tie=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifest of questions of many lengths with no, one and two pictures; the last is the first one again."""
    folder = tmp_path_factory.mktemp("questions")
    made = []
    for index in range(COUNT - 1):
        images = tuple(picture(folder / f"{index}-{place}.png", 30 * index + place) for place in range(index % 3))
        text = "<image>\n" * len(images) + "What colour? " * (1 + index % 5) + str(index)
        made.append(Record(f"r{index}", images, (Turn("user", text), Turn("assistant", "red"))))
    write_records(folder / "test.jsonl", [*made, Record("again", made[1].images, made[1].turns)])
    write_manifest(folder)
    return folder / "manifest.json"


def picture(path: Path, seed: int) -> Image:
    Pictures.effect_noise((20 + seed, 24), 90).convert("RGB").point(lambda value: (value * (seed + 3)) % 256).save(path)
    return Image(str(path), 20 + seed, 24, sha256_file(path))


@pytest.fixture
def asked(model: Path, data: Path, tmp_path: Path) -> Asked:
    """Asks the model and returns the file of answers."""

    def run(shard: str = "1-of-1", evaluation: str = "e", batch_size: int = 4, **changed: Any) -> Path:
        over = {name: changed.pop(name) for name in ("projector", "adapter") if name in changed}
        source, checkpoint = changed.pop("model", model), changed.pop("checkpoint", "model-x")
        output = tmp_path / evaluation / checkpoint / "answers" / f"{shard}.json"
        ask_transformers({**CONFIG, **changed}, source, checkpoint, data, shard, batch_size, tmp_path / "cache", output,
                         **over)  # fmt: skip
        return output

    return run


def answers(file: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read_json(file)["answers"]
    return found


def engine(model: Path, batch_size: int = 4, max_tiles: int | None = None, **over: Path) -> TransformersEngine:
    return TransformersEngine(Source(model, **over), Settings(CONFIG["max_new_tokens"], max_tiles), batch_size)


def all_answers(engine: TransformersEngine, questions: Sequence[Question]) -> dict[str, Answer]:
    return {key: answer for group in engine.answer(questions, ()) for key, answer in group.items()}


@pytest.fixture
def questions(data: Path) -> list[Question]:
    return questions_of(read_evaluated(CONFIG, data), None, "model-x")


def test_batches_answer_as_one_by_one_in_the_order_of_the_records(asked: Asked, data: Path) -> None:
    one, four = asked(evaluation="one", batch_size=1), asked(evaluation="four", limit=None, batch_size=4)
    shutil.rmtree(four.parents[3] / "cache")
    four = asked(evaluation="four", batch_size=4)
    assert read_json(four)["facts"]["asked"] == COUNT - 1
    assert answers(one) == answers(four)
    assert [each["id"] for each in answers(four)] == [each.id for each in read_evaluated(CONFIG, data)]
    assert len({each["prediction"] for each in answers(four)}) > COUNT // 2, "the pictures are looked at"
    assert answers(four)[1] | {"id": "again"} == answers(four)[-1]


def test_every_answer_says_how_it_ended(asked: Asked) -> None:
    found = answers(asked(max_new_tokens=3))
    assert {each["finish"] for each in found} <= {"stop", "length"}
    assert all(each["tokens"] == 3 for each in found if each["finish"] == "length")
    assert all(each["tokens"] < 3 for each in found if each["finish"] == "stop")


def test_an_answer_ends_at_the_end_token_in_a_batch_too(
    model: Path, questions: list[Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a long one of the batch makes the short ones go on with is no part of them."""
    generated: list[list[int]] = []
    monkeypatch.setattr(transformers, "decode", lambda *given: (generated.append(given[1]), engines.decode(*given))[1])
    all_answers(engine(model), questions)
    end = generated[0][2]
    monkeypatch.setattr(transformers, "end_tokens", lambda _: {end})
    one, four = all_answers(engine(model, batch_size=1), questions), all_answers(engine(model), questions)
    assert one == four
    assert {answer.finish for answer in one.values()} == {"stop", "length"}
    assert {answer.tokens for answer in one.values() if answer.finish == "stop"} >= {2}


def test_the_second_run_starts_no_engine(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    first = asked()
    monkeypatch.setattr(transformers, "TransformersEngine", None)
    assert answers(asked(evaluation="other", limit=5)) == answers(first)[:5]
    parts = [asked(f"{index}-of-3") for index in (1, 2, 3)]
    assert {each["id"]: each for part in parts for each in answers(part)} == {
        each["id"]: each for each in answers(first)
    }
    assert [read_json(part)["facts"]["asked"] for part in parts] == [0, 0, 0]
    with pytest.raises(TypeError, match="not callable"):
        asked(max_new_tokens=9)


def dying(after: int, error: BaseException) -> Callable[..., Iterator[Mapping[str, Answer]]]:
    """An ``answer`` that fails after some groups."""
    whole = TransformersEngine.answer

    def answer(
        self: TransformersEngine, questions: Sequence[Question], known: Collection[str]
    ) -> Iterator[Mapping[str, Answer]]:
        for count, group in enumerate(whole(self, questions, known)):
            if count == after:
                raise error
            yield group

    return answer


@pytest.mark.parametrize("error", [RuntimeError("CUDA error"), KeyboardInterrupt(), MemoryError()], ids=repr)
def test_after_an_engine_that_died_only_the_rest_is_asked(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    undisturbed = answers(asked())
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "e" / "model-x" / "answers" / "1-of-1.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(TransformersEngine, "answer", dying(2, error))
        with pytest.raises(type(error)):
            asked()
    assert not list(tmp_path.glob("e/*/answers/*"))
    resumed = asked()
    assert read_json(resumed)["facts"]["asked"] == COUNT - 1 - 8
    assert answers(resumed) == undisturbed


class Silent:
    """An engine that says nothing, or not enough, and does not complain."""

    def __init__(self, *groups: Mapping[str, Answer]) -> None:
        self.groups = groups
        self.closed = False

    def answer(self, questions: Sequence[Question], known: Collection[str]) -> Iterator[Mapping[str, Answer]]:
        del questions, known
        yield from self.groups

    def close(self) -> None:
        self.closed = True


def test_an_engine_that_ends_early_is_one_clear_error(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, questions: list[Question]
) -> None:
    silent = Silent({}, {questions[0].key: Answer("red", "stop", 1, "")}, {})
    monkeypatch.setattr(transformers, "TransformersEngine", lambda *_: silent)
    monkeypatch.setattr(asking, "_SPOKEN", 0.0)
    with pytest.raises(UserError, match=r"record r1: the engine ended without an answer to 11 of 12 questions"):
        asked()
    assert silent.closed


def test_what_does_not_fit_into_memory_is_halved(
    model: Path, questions: list[Question], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected, small = all_answers(engine(model), questions), engine(model, batch_size=8)
    whole, sizes = small._model.generate, []

    def generate(**inputs: Any) -> Any:
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError
        return whole(**inputs)

    monkeypatch.setattr(small._model, "generate", generate)
    with caplog.at_level("INFO"):
        assert all_answers(small, questions) == expected
    assert sizes == [8, 4, 2, 2, 4, 2, 2, 4, 2, 2]
    assert "out of GPU memory with 8 questions at once: asking 4" in caplog.text


def test_a_prompt_that_does_not_fit_alone_is_one_clear_error(
    model: Path, questions: list[Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = engine(model)

    def generate(**_: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(small._model, "generate", generate)
    with pytest.raises(UserError, match=r"record r\d+: a prompt of \d+ tokens does not fit into the GPU's memory"):
        all_answers(small, questions)


def test_a_broken_picture_is_one_clear_error(model: Path, data: Path, tmp_path: Path) -> None:
    folder, output = tmp_path / "copy", tmp_path / "e" / "model-x" / "answers" / "1-of-1.json"
    shutil.copytree(data.parent, folder)
    text = (folder / "test.jsonl").read_text().replace(str(data.parent), str(folder))
    (folder / "test.jsonl").write_text(text)
    (folder / "4-0.png").write_bytes(b"no picture")
    broken = folder / "manifest.json"
    write_manifest(folder)
    with pytest.raises(UserError, match=r"4-0\.png, record r4: cannot read the picture"):
        ask_transformers(CONFIG, model, "model-x", broken, "1-of-1", 4, tmp_path / "cache", output)
    assert not output.exists()


def test_a_question_with_too_few_pictures_is_named(model: Path) -> None:
    wrong = Record("r9", (), (Turn("user", "<image>\n<image>\nWhat?"), Turn("assistant", "x")))
    with pytest.raises(UserError, match=r"record r9: 2 <image> for 0 picture"):
        all_answers(engine(model), questions_of([wrong], None, "model-x"))


def test_other_code_takes_no_answers(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    asked()
    monkeypatch.setattr("vlmflow.evaluation.ask_transformers.fingerprint", lambda _: "other")
    assert read_json(asked())["facts"]["asked"] == COUNT - 1


def test_halves_of_characters_and_long_answers_are_written(
    asked: Asked, questions: list[Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = dict.fromkeys((each.key for each in questions), Answer("\ud83d" + "红" * 20_000, "length", 9, ""))
    monkeypatch.setattr(transformers, "TransformersEngine", lambda *_: Silent(said))
    file = asked()
    assert read_answers([file])["r0"].prediction == "?" + "红" * 20_000
    assert json.loads(file.read_bytes().decode("utf-8"))["facts"]["checkpoint"] == "model-x"


def test_a_long_question_has_a_batch_of_its_own() -> None:
    assert in_batches([3, 0, 1, 2], [40, 39, 10, 900], 2) == [[3], [0, 1], [2]]
    assert in_batches([0, 1, 2], [20, 20, 10], 8) == [[0, 1, 2]]
    assert in_batches([], [], 8) == []


def test_what_exceeds_the_context_is_named_before_anything_is_asked(asked: Asked) -> None:
    with pytest.raises(UserError, match=r"(?s)record r\d+: \d+ tokens and an answer of up to 99999 do not fit"):
        asked(max_new_tokens=99_999)


@pytest.mark.parametrize(
    ("rope", "tokens"),
    [({}, 100), ({"rope_type": "default"}, 100), ({"rope_type": "dynamic", "factor": 2.0}, 200),
     ({"type": "dynamic", "factor": 3}, 300), ({"rope_type": "linear", "factor": 4.0}, 100)],
)  # fmt: skip
def test_dynamic_scaling_lengthens_the_context(rope: dict[str, Any], tokens: int) -> None:
    assert context_length({"max_position_embeddings": 100, "rope_parameters": rope}) == tokens
    assert context_length({"max_position_embeddings": 100, "rope_scaling": rope}) == tokens
