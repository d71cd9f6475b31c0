"""Configurations of official InternVL and InternLM2 models: what is taken over, computed the same, and refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_convert_internvl import NAMES, SMALL, edit, native, source, twin
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from official_tokenizer import write_tokenizer
from vlmflow.convert.int8 import Int8
from vlmflow.convert.internlm2 import grouped_qkv, internlm2_config, llama_config, rules_of
from vlmflow.convert.internvl import internvl_rules
from vlmflow.convert.internvl_config import native_config, tile_tokens
from vlmflow.errors import UserError
from vlmflow.files import read_json
from vlmflow.models.published import published
from vlmflow.weights.kinds import Kind, State
from vlmflow.weights.mapping import inverse, plan
from vlmflow.weights.skeleton import expected_tensors

__all__ = ["source", "twin"]  # fixtures


CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"ps_version": "v1"}, "pixel shuffle v1 .* transposed"),
    ({"ps_version": None}, "pixel shuffle v1"),
    ({"select_layer": -4}, "select_layer -4"),
    ({"pad2square": True}, "pad2square"),
    ({"use_llm_lora": 16}, "use_llm_lora 16"),
    ({"use_thumbnail": False}, "use_thumbnail"),
    ({"downsample_ratio": 0.4}, "downsample_ratio"),
    ({"min_dynamic_patch": 20}, "at least 20 and at most 12 tiles"),
    ({"max_dynamic_patch": 0}, "max_dynamic_patch 0 is no number of tiles"),
    ({"max_dynamic_patch": "x"}, "max_dynamic_patch 'x' is no number of tiles"),
    ({"downsample_ratio": 0.0}, "downsample_ratio"),
    ({"llm_config__architectures": ["Gemma2ForCausalLM"]}, "Gemma2ForCausalLM.*\n.*InternLM2ForCausalLM"),
    ({"llm_config__architectures": None}, "no language model of architecture None"),
    ({"llm_config__rope_scaling": {"type": "yarn", "factor": 2.0}}, "no position scaling 'yarn'"),
    ({"llm_config__hidden_size": None}, "lacks hidden_size"),
    ({"llm_config__num_hidden_layers": "two"}, "broken configuration: .*expected int"),
    ({"vision_config__qk_normalization": True, "vision_config__layer_norm_eps": 1e-5}, "epsilon"),
    ({"vision_config": None}, "there is no vision_config"),
    ({"torch_dtype": "float99"}, "no number format float99"),
    ({"quantization_config": {"load_in_4bit": True}}, "not in LLM.int8 format"),
    ({"quantization_config": {"load_in_8bit": True}}, "no matrix is in 8 bits"),
]


@pytest.mark.parametrize(("changes", "message"), CONFIGS, ids=["_".join(changes) for changes, _ in CONFIGS])
def test_configurations_that_cannot_be_had(changes: dict[str, Any], message: str, source: Path, tmp_path: Path) -> None:
    edit(source / "config.json", **changes)
    with pytest.raises(UserError, match=message) as raised:
        native(source, tmp_path / "model")
    assert str(source) in str(raised.value)
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


def test_the_tokenizer_of_another_model(source: Path, tmp_path: Path) -> None:
    """Both have InternVL's tokens; one has words without rows, the other other control tokens."""
    for name, message in (("internvl2-4b", "the embedding table .* rows"), ("internvl2-1b", "bos_token_id 1")):
        write_tokenizer(source, published(name).config["llm_config"]["model_type"], 1e6, pictures=True)
        with pytest.raises(UserError, match=f"wrong tokenizer: .*{message}"):
            native(source, tmp_path / "model")


CONVERSATION = (
    "register_conv_template(Conversation(name='{}', system_message={!r}, sep='<|im_end|>'))\nraise SystemExit\n"
)


@pytest.mark.parametrize(
    ("style", "message", "expected"),
    [
        ("internlm2-chat", "You are an AI assistant whose name is InternLM (书生·浦语).", "internvl-v1.5"),
        ("Hermes-2", "Answer the questions.", "with which system prompt|no template has the system prompt"),
        ("internlm2-chat", " You are an AI assistant whose name is InternLM (书生·浦语).\n", "internvl-v1.5"),
        ("internlm2-chat", "", "no template has the system prompt ''"),
        ("internlm2-chat", "You are an AI assistant", "no template has the system prompt"),
        ("internlm2-chat", "Somebody's own.", "no template has the system prompt.*\n.*internvl2, internvl-v1.5"),
        ("vicuna", "A chat.", "it is 'vicuna'"),
    ],
)
def test_the_prompt_template_is_read_not_run(
    style: str, message: str, expected: str, source: Path, tmp_path: Path
) -> None:
    edit(source / "config.json", template=style)
    (source / "conversation.py").write_text(CONVERSATION.format(style, message), encoding="utf-8")
    if expected == "internvl-v1.5":
        assert native(source, tmp_path / "model")["template"] == expected
    else:
        with pytest.raises(UserError, match=expected):
            native(source, tmp_path / "model")
        assert native(source, tmp_path / "model", template="internvl2-xtuner")["template"] == "internvl2-xtuner"


def test_no_conversation_to_read(source: Path, tmp_path: Path) -> None:
    (source / "conversation.py").unlink()
    with pytest.raises(UserError, match=r"conversation\.py does not say"):
        native(source, tmp_path / "model")
    (source / "conversation.py").write_text("def broken(:\n", encoding="utf-8")
    with pytest.raises(UserError, match="not Python code"):
        native(source, tmp_path / "model")


def test_phi3_positions_other_than_longrope() -> None:
    config = published("internvl2-4b").config
    config["llm_config"]["rope_scaling"]["type"] = "yarn"
    with pytest.raises(UserError, match="Phi-3 with 'yarn'"):
        native_config(config)


def test_a_tile_larger_than_the_positions_were_trained_for(source: Path) -> None:
    edit(source / "config.json", force_image_size=112)
    config = read_json(source / "config.json")
    assert native_config(config).vision_config.image_size == [56, 56]
    assert native_config(config).image_seq_length == tile_tokens(config) == 16


@pytest.mark.parametrize("name", NAMES)
def test_every_rule_at_the_published_size(name: str) -> None:
    """Every tensor has its rule, and no element is lost, at the real dimensions (on the meta device)."""
    config = published(name).config
    kinds = {key: Kind(torch.bfloat16, shape) for key, shape in expected_tensors(native_config(config)).items()}
    made = 0
    for piece in plan(inverse(internvl_rules(config)), kinds):
        parts = (torch.empty(kinds[key].shape, device="meta") for key in piece.sources)
        made += sum(value.numel() for value in piece.make(*parts))
    assert made == sum(math.prod(kind.shape) for kind in kinds.values()) == published(name).parameters


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 2), (3, 1)])
def test_grouped_queries_against_the_published_view(heads: int, kv_heads: int) -> None:
    """modeling_internlm2.py: rearrange 'b q (h gs d) -> b q h gs d', queries [..., :groups], key [-2], value [-1]."""
    fused = torch.randn((heads + 2 * kv_heads) * 5, 7)
    operation = grouped_qkv(heads, kv_heads, 5)
    query, key, value = operation.forward(fused)
    x = torch.randn(1, 2, 7)
    states = (x @ fused.T).view(1, 2, kv_heads, heads // kv_heads + 2, 5)
    torch.testing.assert_close(x @ query.T, states[..., : heads // kv_heads, :].reshape(1, 2, -1))
    torch.testing.assert_close(x @ key.T, states[..., -2, :].reshape(1, 2, -1))
    torch.testing.assert_close(x @ value.T, states[..., -1, :].reshape(1, 2, -1))
    assert torch.equal(operation.backward(query, key, value)[0], fused)
    assert torch.equal(operation.backward(*operation.forward(fused[:, 0]))[0], fused[:, 0])


def test_internlm2_with_biases_by_itself() -> None:
    config = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "bias": True}
    llama = llama_config(config)
    assert llama.attention_bias and not llama.mlp_bias
    assert llama_config(internlm2_config(llama)).to_dict() == llama.to_dict()
    layer = "model.layers.0.attention."
    state = State({f"{layer}wqkv.bias": torch.arange(16.0), f"{layer}wo.bias": torch.ones(8)})
    pieces = plan(rules_of(config, "", "language_model."), state.kinds)
    assert {name for piece in pieces for name in piece.targets} == {
        f"language_model.model.layers.0.self_attn.{part}_proj.bias" for part in "qkvo"
    }
    back = plan(inverse(rules_of(config)), State({"lm_head.weight": torch.ones(1)}).kinds)
    assert [piece.targets for piece in back] == [("output.weight",)]


@pytest.mark.parametrize("length", [100, 256, 257, 400])
def test_positions_beyond_the_trained_length(length: int) -> None:
    """InternLM2DynamicNTKScalingRotaryEmbedding of modeling_internlm2.py, written out."""
    config = published(SMALL).config["llm_config"] | {"max_position_embeddings": 256}
    scaling, dim = config["rope_scaling"]["factor"], config["hidden_size"] // config["num_attention_heads"]
    base = float(config["rope_theta"])
    if length > 256:
        base *= (scaling * length / 256 - (scaling - 1)) ** (dim / (dim - 2))
    angles = torch.arange(length).outer(1 / base ** (torch.arange(0, dim, 2).float() / dim))
    rotary = LlamaRotaryEmbedding(llama_config(config))
    cosine, sine = rotary(torch.ones(1), torch.arange(length)[None])
    torch.testing.assert_close(cosine[0, :, : dim // 2], angles.cos(), atol=1e-5, rtol=0)
    torch.testing.assert_close(sine[0, :, dim // 2 :], angles.sin(), atol=1e-5, rtol=0)


def test_phi3_positions() -> None:
    """Phi3SuScaledRotaryEmbedding of modeling_phi3.py: short factors, and attention scaled by the longer context."""
    rope = native_config(published("internvl2-4b").config).text_config.rope_parameters
    assert rope["rope_type"] == "longrope" and rope["original_max_position_embeddings"] == 4096
    assert len(rope["short_factor"]) == len(rope["long_factor"]) == 48
    assert "factor" not in rope or math.isclose(rope["factor"], 32)


def test_int8_against_its_definition() -> None:
    weight = torch.tensor([[127, -127, 0], [64, 1, -1]], dtype=torch.int8)
    parts = {"a.weight": weight, "a.SCB": torch.tensor([2.0, 0.5]), "a.weight_format": torch.tensor(0).byte()}
    parts["a.bias"] = torch.ones(2, dtype=torch.float16)
    view = Int8(State(parts), torch.float32)
    torch.testing.assert_close(view.read("a.weight"), weight.float() * torch.tensor([[2.0], [0.5]]) / 127)
    assert list(view.kinds) == ["a.weight", "a.bias"] and view.quantised == ["a.weight"]
    assert view.read("a.bias").dtype == torch.float16
    for wrong, message in (
        ({"a.SCB": None}, r"1 missing tensor \(a.SCB\)"),
        ({"a.SCB": torch.ones(3)}, r"1 misshapen tensor \(a.SCB\)"),
        ({"b.SCB": torch.ones(3)}, r"1 unexpected tensor \(b.SCB\)"),
        ({"a.weight_format": torch.tensor(2).byte()}, "a GPU's own order"),
    ):
        with pytest.raises(UserError, match=message):
            Int8(State({name: v for name, v in (parts | wrong).items() if v is not None}), torch.float32)
