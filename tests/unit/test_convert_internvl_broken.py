"""Small files of official InternVL directories that are broken, or say something else than the model directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_convert_internvl import INT8, edit, native, official, source, twin, values

from official import make_official, write_weights
from vlmflow.errors import UserError
from vlmflow.files import read_json, write_json

__all__ = ["source", "twin"]  # fixtures
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0a1b\nsize 5\n"
CONVERSATION = "Conversation(name='internlm2-chat', system_message={})\n"


def test_other_tiles_and_another_prompt_than_official(
    twin: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    native(twin, tmp_path / "model", max_tiles=6, template="internvl2-xtuner")
    facts = official(tmp_path / "model", tmp_path / "back")
    assert (facts["template"], facts["official_template"]) == ("internvl2-xtuner", "internvl2")
    assert "ask with another prompt" in caplog.text
    config = read_json(tmp_path / "back" / "config.json")
    assert config == {**read_json(twin / "config.json"), "max_dynamic_patch": 6}
    assert native(tmp_path / "back", tmp_path / "again", template="internvl2")["max_tiles"] == 6
    caplog.clear()
    assert official(tmp_path / "again", tmp_path / "last")["template"] == "internvl2"
    assert not caplog.text
    (tmp_path / "again" / "chat_template.jinja").write_text("{{ raise_exception('no') }}", encoding="utf-8")
    assert official(tmp_path / "again", tmp_path / "unknown")["template"] is None
    assert "template 'unknown', its official files mean 'internvl2'" in caplog.text


FILES: list[tuple[str, str, str]] = [
    ("config.json", "5", "config.json: broken configuration: it is no JSON object"),
    ("tokenizer.json", "{}", r"tokenizer.json: broken tokenizer: .*\n.*fetch"),
    ("tokenizer.json", '{"version": "1.0", "trunc', "tokenizer.json: broken tokenizer"),
    ("tokenizer.json", POINTER, r"tokenizer.json: broken tokenizer: .*\n.*LFS"),
    ("tokenizer_config.json", "[]", "tokenizer_config.json: broken tokenizer: no JSON object"),
    ("tokenizer_config.json", '{"added_tokens_decoder": {"a": {"content": "a"}}}', "broken tokenizer: ValueError"),
    ("tokenizer_config.json", '{"added_tokens_decoder": {"5": {}}}', "broken tokenizer: KeyError"),
    ("tokenizer_config.json", '{"added_tokens_decoder": 5}', "broken tokenizer: AttributeError"),
    ("added_tokens.json", '["a"]', "added_tokens.json: broken tokenizer: no JSON object"),
    ("added_tokens.json", '{"a": "x"}', "added_tokens.json: broken tokenizer: id 'x' of a"),
    ("special_tokens_map.json", '{"bos_token": {"a": 1}}', "broken tokenizer: KeyError"),
    ("conversation.py", "x = " + "-" * 200_000 + "1\n", "not Python code: (nested too deeply|.*recursion)"),
    ("conversation.py", CONVERSATION.format("{[]: 1}"), r"conversation\.py does not say its system"),
    ("conversation.py", CONVERSATION.format("-" * 2000 + "1"), r"conversation\.py"),
    ("generation_config.json", "[1]", "generation_config.json: broken generation settings: no JSON object"),
    ("generation_config.json", '{"length_penalty": 2.0}', "generation_config.json: broken generation settings: .*beam"),
    ("generation_config.json", '{"eos_token_id": "2"}', "field eos_token_id: broken generation settings"),
    ("generation_config.json", '{"max_new_tokens": -1}', "generation_config.json: broken generation settings"),
]


@pytest.mark.parametrize(("file", "content", "message"), FILES, ids=[f"{f}-{i}" for i, (f, *_) in enumerate(FILES)])
def test_broken_files(file: str, content: str, message: str, source: Path, tmp_path: Path) -> None:
    (source / file).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message) as raised:
        native(source, tmp_path / "model")
    assert str(source) in str(raised.value)


def test_vocabulary_of_a_git_without_lfs(source: Path, tmp_path: Path) -> None:
    (source / "tokenizer.json").unlink()
    for name in ("vocab.json", "merges.txt"):
        (source / name).write_text(POINTER, encoding="utf-8")
    with pytest.raises(UserError, match=r"vocab\.json or merges\.txt"):
        native(source, tmp_path / "model")


CONFIGS: list[tuple[str, Any, str]] = [
    ("vision_config__patch_size", 0, "field vision_config.patch_size: broken configuration: patch_size is 0"),
    ("vision_config__num_attention_heads", 0, "num_attention_heads is 0"),
    ("vision_config__num_attention_heads", 7, "broken configuration: ValueError"),
    ("vision_config__norm_type", "batch", r"field vision_config.norm_type: unsupported model: .*batch\n.*rms_norm"),
    ("vision_config__hidden_act", "foo", "field vision_config.hidden_act: unsupported model"),
    ("vision_config__hidden_size", "abc", "broken configuration: .*hidden_size"),
    ("llm_config__num_attention_heads", 0, "field llm_config.num_attention_heads"),
    ("llm_config__hidden_size", -4, "hidden_size is -4"),
    ("llm_config__hidden_act", "foo", "field llm_config.hidden_act: unsupported model"),
    ("llm_config__num_key_value_heads", 3, "heads cannot share 3"),
    ("torch_dtype", "int8", "no number format int8"),
    ("llm_config__rope_scaling", "x", "broken configuration: AttributeError"),
    ("llm_config__rope_scaling", {"type": "dynamic"}, "broken configuration: KeyError: 'factor'"),
    ("force_image_size", "x", "broken configuration: ValueError"),
    ("quantization_config", "int8", "field quantization_config: unsupported checkpoint"),
]


@pytest.mark.parametrize(("key", "value", "message"), CONFIGS, ids=[f"{key}-{value}" for key, value, _ in CONFIGS])
def test_broken_configurations(key: str, value: Any, message: str, source: Path, tmp_path: Path) -> None:
    edit(source / "config.json", **{key: value})
    with pytest.raises(UserError, match=message) as raised:
        native(source, tmp_path / "model")
    assert str(source / "config.json") in str(raised.value)


def test_a_broken_model_directory(twin: Path, tmp_path: Path) -> None:
    native(twin, tmp_path / "model")
    edit(tmp_path / "model" / "config.json", text_config__hidden_size="x")
    with pytest.raises(UserError, match=r"model/config\.json: broken configuration"):
        official(tmp_path / "model", tmp_path / "back")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"do_sample": False, "temperature": 0.3, "top_k": 5}, {"do_sample": False}),
        ({"do_sample": True, "temperature": 0.3}, {"do_sample": True, "temperature": 0.3}),
    ],
)
def test_settings_of_sampling(given: dict[str, Any], kept: dict[str, Any], source: Path, tmp_path: Path) -> None:
    write_json(source / "generation_config.json", given)
    native(source, tmp_path / "model")
    written = read_json(tmp_path / "model" / "generation_config.json")
    assert {key: value for key, value in written.items() if key in ("do_sample", "temperature", "top_k")} == kept


def test_int8_of_other_tensors(tmp_path: Path) -> None:
    source = make_official(INT8, tmp_path / "source")
    tensors = values(source)
    bias = "vision_model.encoder.layers.0.mlp.fc1.bias"
    formats = {key: torch.zeros(3, dtype=torch.uint8) for key in tensors if key.endswith("weight_format")}
    for wrong, message in (
        ({bias: tensors[bias].to(torch.int8)}, rf"1 unexpected tensor \({bias}\)"),
        (formats, r"misshapen tensors .*weight_format"),
    ):
        write_weights({**tensors, **wrong}, source, 1)
        with pytest.raises(UserError, match=message):
            native(source, tmp_path / "model")
