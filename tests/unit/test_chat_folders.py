"""Talking with a model directory from elsewhere, or with what is none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_chat import SHORT, last, red

from conftest import make_tiny_model
from vlmflow.chat.answerer import open_model
from vlmflow.chat.conversation import question
from vlmflow.chat.local import LocalModel
from vlmflow.errors import UserError
from vlmflow.files import read_json


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("nowhere", {}, "no such folder"),
        (".", {}, "not a model directory: it has no config.json"),
        (".", {"backend": "vllm"}, "no back end 'vllm'"),
        (
            "model",
            {"adapter": Path()},
            "not the result of a finetune: .*\n.*results/finetune/NAME",
        ),
        ("http://127.0.0.1:9/v1", {"max_tiles": 1}, "server's own affair"),
    ],
)
def test_what_is_no_model(
    model: str, options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=message):
        open_model(model, **options)


def test_a_model_of_another_family_or_template(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_vl"}')
    with pytest.raises(UserError, match="a model of type 'qwen2_vl'"):
        open_model(str(tmp_path))
    copy = foreign(tiny_model, tmp_path)
    (copy / "chat_template.jinja").write_text("{% for message in messages %}{{ message.role }}{% endfor %}")
    with pytest.raises(UserError, match="takes no plain text"):
        open_model(str(copy))


def foreign(model: Path, folder: Path) -> Path:
    """A copy that does not come from the workflow: it has no manifest."""
    copy = shutil.copytree(model.parent, folder / "copy")
    (copy / "manifest.json").unlink()
    return copy


@pytest.mark.parametrize(
    ("names", "length", "message"),
    [
        ("chat_template.jinja", 0, "it has no chat template"),
        ("chat_template.jinja", 30, "its chat template cannot be read"),
        ("tokenizer*.json", 0, "its tokenizer or picture processor cannot be read"),
        ("processor_config.json", 0, "its tokenizer or picture processor cannot be read"),
        ("model.safetensors", 0, "its weights cannot be read: OSError"),
        ("model.safetensors", 100, "its weights cannot be read: SafetensorError"),
        ("config.json", 2, "its config.json has no text_config"),
    ],
)
def test_a_folder_that_is_not_whole(tiny_model: Path, tmp_path: Path, names: str, length: int, message: str) -> None:
    """Files that are missing, or end after some bytes."""
    copy = foreign(tiny_model, tmp_path)
    for file in copy.glob(names):
        rest = b'{"model_type": "llava"}' if file.name == "config.json" else file.read_bytes()[:length]
        file.unlink()
        if length:
            file.write_bytes(rest)
    with pytest.raises(UserError) as raised:
        last(open_model(str(copy)).stream([question("a")], SHORT))
    assert message in str(raised.value) and "https" not in str(raised.value)
    assert Path(str(raised.value.problem.file)) == copy and str(raised.value).count("\n") == 1


def test_a_directorys_own_penalties_do_not_count(tiny_model: Path, tmp_path: Path) -> None:
    copy = foreign(tiny_model, tmp_path)
    settings = read_json(copy / "generation_config.json")
    (copy / "generation_config.json").write_text(json.dumps({**settings, "repetition_penalty": 9.0, "min_length": 20}))
    asked = [question("What?", [red()])]
    assert last(LocalModel(copy).stream(asked, SHORT)) == last(LocalModel(tiny_model.parent).stream(asked, SHORT))


def test_an_adapter_is_loaded_over_its_base(tiny_model: Path, tmp_path: Path) -> None:
    other = make_tiny_model(tmp_path, seed=1)
    with pytest.raises(UserError, match="no result of a training"):
        last(LocalModel(tiny_model.parent, other.parent).stream([question("a")], SHORT))
