"""The published models by their numbers, and the tiny twins that stand for them in tests."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import CLIPVisionConfig, LlavaConfig, PreTrainedConfig

from official import make_llava_parts, make_official
from official_shapes import official_shapes, shrink
from vlmflow.convert.internvl import internvl_rules
from vlmflow.convert.internvl_config import native_config, text_config
from vlmflow.errors import UserError
from vlmflow.models.published import published, published_names
from vlmflow.models.template import chat_template
from vlmflow.weights.kinds import Kind
from vlmflow.weights.mapping import inverse, plan
from vlmflow.weights.skeleton import expected_tensors

INTERNVL = [name for name in published_names() if published(name).family == "internvl"]
LLAVA = [name for name in published_names() if published(name).family == "llava"]
TUTORIALS = {
    "internvl-chat-v1.5", "internvl-chat-v1.5-int8", "mini-internvl-chat-2b-v1.5", "mini-internvl-chat-4b-v1.5",
    "internvl2-1b", "internvl2-2b", "internvl2-4b", "internvl2-8b", "internvl2-26b", "internvl2-40b",
    "internvl2-llama3-76b", "llava-internlm2-chat-1.8b",
}  # fmt: skip


def native(name: str) -> PreTrainedConfig:
    """The configuration of the model in transformers' own architecture."""
    model = published(name)
    if model.family == "internvl":
        return native_config(model.config)
    vision = CLIPVisionConfig(**model.config["vision"]["vision_config"])
    return LlavaConfig(
        vision_config=vision, text_config=text_config(model.config["language"]), tie_word_embeddings=False
    )


def count(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def tensors(folder: Path) -> dict[str, str]:
    """Name -> number format of the tensors in a folder."""
    found: dict[str, str] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as stored:
            found |= {name: stored.get_slice(name).get_dtype() for name in stored.keys()}  # noqa: SIM118
    return found


def patterns(names: Any) -> set[str]:
    """Names with every layer's number replaced."""
    return {re.sub(r"\.layers\.\d+\.", ".layers.*.", name) for name in names}


def test_all_models_of_the_tutorials_are_there() -> None:
    assert set(published_names()) >= TUTORIALS


def test_an_unknown_model_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean internvl2-2b"):
        published("InternVL2_2B")


@pytest.mark.parametrize("name", published_names())
def test_the_parameters_are_those_that_were_published(name: str) -> None:
    model = published(name)
    assert count(expected_tensors(native(name))) == model.parameters
    assert model.published is not None
    last_digit = 10 ** (len(str(model.published)) - len(str(model.published).rstrip("0")))
    assert abs(model.parameters - model.published) <= last_digit / 2


@pytest.mark.parametrize("name", published_names())
def test_its_prompt_template_exists(name: str) -> None:
    model = published(name)
    assert "message" in chat_template(model.template, model.family)


@pytest.mark.parametrize("name", INTERNVL)
def test_the_official_layout_fits_the_native_architecture(name: str) -> None:
    config = published(name).config
    official = official_shapes(config)
    assert count(official) == published(name).parameters
    kinds = {tensor: Kind(torch.bfloat16, shape) for tensor, shape in official.items()}
    made: dict[str, tuple[int, ...]] = {}
    for piece in plan(internvl_rules(config), kinds, Path(name)):
        results = piece.make(*(torch.empty(official[source], device="meta") for source in piece.sources))
        made |= {target: tuple(result.shape) for target, result in zip(piece.targets, results, strict=True)}
    assert made == expected_tensors(native(name))


@pytest.mark.parametrize("name", INTERNVL)
def test_the_twin_has_the_tensors_of_the_official_layout(name: str, tmp_path: Path) -> None:
    """They are found from the native architecture at its real size, by the mapping back."""
    config = published(name).config
    kinds = {tensor: Kind(torch.bfloat16, shape) for tensor, shape in expected_tensors(native(name)).items()}
    pieces = plan(inverse(internvl_rules(config)), kinds, Path(name))
    found = tensors(make_official(name, tmp_path / name, shards=2))
    weights = {tensor for tensor in found if not tensor.endswith((".SCB", ".weight_format"))}
    assert patterns(weights) == patterns(target for piece in pieces for target in piece.targets)
    stems = {tensor.removesuffix(".weight") for tensor, kind in found.items() if kind == "I8"}
    assert bool(stems) == ("quantization_config" in config)
    assert found.keys() - weights == {stem + helper for stem in stems for helper in (".SCB", ".weight_format")}


@pytest.mark.parametrize("name", INTERNVL)
def test_the_twin_keeps_what_is_not_a_width(name: str, tmp_path: Path) -> None:
    folder = make_official(name, tmp_path / name)
    small, real = json.loads((folder / "config.json").read_text(encoding="utf-8")), published(name).config
    language, original = small["llm_config"], real["llm_config"]
    share = original["num_attention_heads"] // original["num_key_value_heads"]
    assert language["num_attention_heads"] == share * language["num_key_value_heads"]
    assert language["num_key_value_heads"] > 1
    for key in ("architectures", "rope_theta", "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings"):
        assert language[key] == original[key]
    for key in ("norm_type", "qk_normalization", "qkv_bias", "layer_norm_eps", "patch_size"):
        assert small["vision_config"][key] == real["vision_config"][key]
    assert {key: small[key] for key in ("template", "ps_version", "max_dynamic_patch")} == {
        key: real[key] for key in ("template", "ps_version", "max_dynamic_patch")
    }
    assert count(official_shapes(shrink(real) | {"llm_config": language})) < 2_000_000


@pytest.mark.parametrize("name", LLAVA)
def test_the_twins_of_llavas_parts_are_as_published(name: str, tmp_path: Path) -> None:
    language, vision = make_llava_parts(tmp_path, name)
    architecture = json.loads((language / "config.json").read_text(encoding="utf-8"))["architectures"]
    assert architecture == published(name).config["language"]["architectures"]
    output = "output.weight" if architecture == ["InternLM2ForCausalLM"] else "lm_head.weight"
    assert output in tensors(language)
    assert {"visual_projection.weight", "vision_model.embeddings.class_embedding"} <= tensors(vision).keys()
