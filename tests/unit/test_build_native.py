"""Checkpoints in transformers' own layout: one prompt template, no stray files, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoProcessor, AutoTokenizer

from llava_parts import build
from official import make_official
from vlmflow.errors import UserError
from vlmflow.files import read_json, write_json


@pytest.fixture(scope="module")
def llava(vicuna: Path, clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA from elsewhere: without manifest."""
    folder = build(tmp_path_factory.mktemp("llava") / "model", language=vicuna, vision=clip, template="vicuna")
    (folder / "manifest.json").unlink()
    return folder


@pytest.fixture(scope="module")
def internvl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An InternVL from elsewhere: without manifest."""
    source = make_official("internvl2-2b", tmp_path_factory.mktemp("internvl") / "source", dtype=torch.float32)
    folder = build(source.parent / "model", family="internvl", checkpoint=source)
    (folder / "manifest.json").unlink()
    return folder


def copied(folder: Path, place: Path) -> Path:
    return Path(shutil.copytree(folder, place))


def edit(file: Path, **changes: Any) -> None:
    write_json(file, {**read_json(file), **changes})


def in_legacy_file(folder: Path, template: str) -> None:
    write_json(folder / "chat_template.json", {"chat_template": template})


def in_processor(folder: Path, template: str) -> None:
    edit(folder / "processor_config.json", chat_template=template)


def in_tokenizer(folder: Path, template: str) -> None:
    (folder / "chat_template.jinja").unlink()
    edit(folder / "tokenizer_config.json", chat_template=template)


@pytest.mark.parametrize("place", [in_legacy_file, in_processor, in_tokenizer])
@pytest.mark.parametrize(
    ("family", "template"), [("llava", "plain"), ("internvl", "internvl2-xtuner"), ("internvl", None)]
)
def test_there_is_one_prompt_template(
    place: Callable[[Path, str], None], family: str, template: str | None, tmp_path: Path, request: Any
) -> None:
    source = copied(request.getfixturevalue(family), tmp_path / "source")
    own = (source / "chat_template.jinja").read_text(encoding="utf-8")
    old = own.replace("{%- set picture", "{#- stored -#}{%- set picture", 1)
    assert old != own
    place(source, old)
    folder = build(tmp_path / "model", family=family, checkpoint=source, template=template)
    written = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    assert (written == old) is (template is None)
    assert not (folder / "chat_template.json").exists()
    assert AutoTokenizer.from_pretrained(folder).chat_template == written
    if family == "llava":
        assert AutoProcessor.from_pretrained(folder, backend="pil").chat_template == written
    for file in ("processor_config.json", "tokenizer_config.json"):
        assert "chat_template" not in json.loads((folder / file).read_text(encoding="utf-8"))


def test_only_files_of_the_model_are_copied(internvl: Path, tmp_path: Path) -> None:
    source = copied(internvl, tmp_path / "source")
    (source / ".git").mkdir()
    for name in (".git/config", "a.gguf", "evil.py", "pytorch_model.pt", ".msc.json"):
        (source / name).write_text("{}", encoding="utf-8")
    folder = build(tmp_path / "model", family="internvl", checkpoint=source)
    left = {path.relative_to(internvl).as_posix() for path in internvl.rglob("*")}
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*")} == left | {"manifest.json"}


def without(*names: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        for name in names:
            (folder / name).unlink(missing_ok=True)

    return spoil


def more_tokens(folder: Path) -> None:
    content = read_json(folder / "tokenizer.json")
    first = 1 + max(token["id"] for token in content["added_tokens"])
    model = content["added_tokens"][-1]
    content["added_tokens"] += [{**model, "id": first + index, "content": f"<|x{index}|>"} for index in range(500)]
    write_json(folder / "tokenizer.json", content)


BROKEN: list[tuple[str, Callable[[Path], object], str]] = [
    ("internvl", without("tokenizer.json", "tokenizer.model", "vocab.json"), "missing tokenizer"),
    ("internvl", lambda folder: (folder / "tokenizer.json").write_text("{"), "broken tokenizer"),
    ("internvl", without("processor_config.json"), "neither processor_config.json nor"),
    ("internvl", more_tokens, r"token <\|x\d+\|> has id \d+, the embedding table \d+ rows"),
    ("llava", more_tokens, r"token <\|x\d+\|> has id \d+, the embedding table \d+ rows"),
    ("llava", lambda folder: edit(folder / "config.json", text_config={"model_type": "llama", "hidden_size": "x"}),
     "broken configuration"),
    ("llava", lambda folder: edit(folder / "config.json", vision_config="x"), "broken configuration"),
    ("llava", lambda folder: write_json(folder / "generation_config.json", [1]), "no JSON object"),
    ("llava", lambda folder: edit(folder / "config.json", text_config={"model_type": "llama", "hidden_size": 64}),
     "the tensors do not fit"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "spoil", "message"), BROKEN)
def test_broken_ones(family: str, spoil: Callable[[Path], object], message: str, tmp_path: Path, request: Any) -> None:
    source = copied(request.getfixturevalue(family), tmp_path / "source")
    spoil(source)
    with pytest.raises(UserError, match=message) as caught:
        build(tmp_path / "model", family=family, checkpoint=source, template="plain" if family == "llava" else None)
    assert str(source) in str(caught.value.problem.file)
    assert not (tmp_path / "model").exists()


def test_a_manifest_of_another_kind(llava: Path, tmp_path: Path) -> None:
    source = copied(llava, tmp_path / "source")
    write_json(source / "manifest.json", [])
    build(tmp_path / "model", checkpoint=source, template="vicuna")
