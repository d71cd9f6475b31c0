"""Answers of another engine against those of transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import make_tiny_data, make_tiny_model
from vlmflow.errors import UserError
from vlmflow.evaluation.ask_transformers import ask_transformers
from vlmflow.evaluation.parity import _spread, check_parity
from vlmflow.files import read_json, write_json

CONFIG = {"split": "train", "limit": None, "prompt": None, "max_new_tokens": 6, "max_tiles": None}


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[Path]]:
    """Manifests of a model and 16 questions, and the answers in two parts."""
    folder = tmp_path_factory.mktemp("parity")
    model, data = make_tiny_model(folder, tie=False), make_tiny_data(folder / "data")
    parts = [folder / "e" / "model-x" / "answers" / f"{index}-of-2.json" for index in (1, 2)]
    for part in parts:
        ask_transformers(CONFIG, model, "model-x", data, part.stem, 4, folder / "cache", part)
    return model, data, parts


@pytest.fixture
def check(asked: tuple[Path, Path, list[Path]], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Compare ``count`` answers of which those in ``changed`` (record -> keys) are others."""

    def run(count: int = 8, checkpoint: str = "model-x", **changed: dict[str, Any]) -> dict[str, Any]:
        model, data, parts = asked
        files = [tmp_path / part.name for part in parts]
        for part, file in zip(parts, files, strict=True):
            content = read_json(part)
            said = [{**answer, **changed.get(answer["id"], {})} for answer in content["answers"]]
            write_json(file, {**content, "answers": [answer for answer in said if answer["id"]]})
        check_parity({**CONFIG, "parity": count}, model, checkpoint, data, files, 4, tmp_path / "parity.json")
        found: dict[str, Any] = read_json(tmp_path / "parity.json")
        return found

    return run


def test_equal_answers_are_counted(check: Callable[..., dict[str, Any]]) -> None:
    found = check()
    assert (found["n"], found["equal"], found["differences"]) == (8, 8, [])
    assert found["checkpoint"] == "model-x"
    assert [engine["backend"] for engine in found["engines"]] == ["transformers"] * 2


def test_other_answers_are_told_and_others_than_asked_do_not_count(check: Callable[..., dict[str, Any]]) -> None:
    found = check(r4={"prediction": "mauve"}, r5={"prediction": "mauve"})  # every second record is asked
    assert (found["n"], found["equal"]) == (8, 7)
    ((difference),) = found["differences"]
    assert (difference["id"], difference["other"]) == ("r4", "mauve")
    assert difference["transformers"] != "mauve"


def test_another_prompt_is_refused(check: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"record r4: the two engines were asked in different words"):
        check(r4={"prompt": "0123456789ab"})
    assert not (tmp_path / "parity.json").exists()


def test_other_pictures_ask_the_same_words(check: Callable[..., dict[str, Any]]) -> None:
    """Pictures are no part of the token ids: the answers tell."""
    assert check(16, checkpoint="model-x+blind")["equal"] < 16


def test_a_record_without_an_answer_is_named(check: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(UserError, match=r"1-of-2\.json, record r4: not answered"):
        check(r4={"id": None})


@pytest.mark.parametrize(("length", "count", "expected"), [
    (10, 3, [0, 3, 6]), (10, 10, list(range(10))), (3, 16, [0, 1, 2]), (1000, 2, [0, 500]), (1, 1, [0]),
])  # fmt: skip
def test_questions_are_spread_evenly(length: int, count: int, expected: list[int]) -> None:
    assert _spread(list(range(length)), count) == expected  # type: ignore[arg-type]
