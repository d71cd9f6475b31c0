"""LLaVA models from a language model and a tower: values, small files, projector."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoProcessor,
    CLIPVisionModel,
    Dinov2Model,
    SiglipVisionModel,
)

from conftest import make_tiny_model
from llava_parts import (
    IDS,
    LANGUAGES,
    build,
    equal,
    loaded,
    make_language,
    make_vision,
    to_bin,
    values,
)
from official import make_llava_parts, write_weights
from reference import embed as embed_tokens
from reference import language_logits, official_tensors
from vlmflow.files import read_json, write_json
from vlmflow.models.directory import load_processor
from vlmflow.models.families import llava as family
from vlmflow.models.template import PLACEHOLDER
from vlmflow.weights.checkpoint import Checkpoint


@pytest.mark.parametrize("name", LANGUAGES)
@pytest.mark.parametrize("stored", ["safetensors", "shards", "bin", "bin shards"])
@torch.no_grad()
def test_a_language_model_says_what_it_said(name: str, stored: str, clip: Path, tmp_path: Path) -> None:
    language = make_language(tmp_path / "language", name)
    original = AutoModelForCausalLM.from_pretrained(language).eval()
    if stored.startswith("bin"):
        to_bin(language, 2 if stored == "bin shards" else 1)
    elif stored == "shards":
        tensors = values(language)
        (language / "model.safetensors").unlink()
        write_weights(tensors, language, 3)
    template = LANGUAGES[name][1]
    model = loaded(build(tmp_path / "model", language=language, vision=clip, template=template))
    rows = original.config.vocab_size
    torch.testing.assert_close(model(input_ids=IDS).logits[..., :rows], original(input_ids=IDS).logits, rtol=0, atol=0)
    assert model.config.text_config.model_type == original.config.model_type
    assert model.config.tie_word_embeddings == model.config.text_config.tie_word_embeddings == (name == "qwen2")


@pytest.mark.parametrize("name", ["llava-internlm2-chat-1.8b", "llava-internlm2-chat-20b"])
@torch.no_grad()
def test_internlm2_becomes_a_llama(name: str, tmp_path: Path) -> None:
    language, vision = make_llava_parts(tmp_path, name, dtype=torch.float32)
    folder = build(tmp_path / "model", language=language, vision=vision)
    config, tensors = read_json(language / "config.json"), official_tensors(language)
    expected = language_logits(tensors, config, embed_tokens(tensors, config, IDS))
    found = loaded(folder)(input_ids=IDS).logits[..., : config["vocab_size"]]
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert read_json(folder / "config.json")["text_config"]["architectures"] == ["LlamaForCausalLM"]
    assert read_json(folder / "manifest.json")["template"] == "internlm2-chat"


@pytest.mark.parametrize("name", ["clip", "clip_vision", "siglip", "siglip_vision", "dinov2"])
@torch.no_grad()
def test_a_tower_sees_what_it_saw(name: str, vicuna: Path, tmp_path: Path) -> None:
    vision = make_vision(tmp_path / "vision", name)
    folder = build(tmp_path / "model", language=vicuna, vision=vision, template="vicuna")
    model = loaded(folder)
    original = {"clip": CLIPVisionModel, "siglip": SiglipVisionModel, "dinov2": Dinov2Model}[name.split("_")[0]]
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    hidden = original.from_pretrained(vision).eval()(pixels, output_hidden_states=True).hidden_states[-2]
    patches = hidden if name.startswith("siglip") else hidden[:, 1:]
    expected = model.model.multi_modal_projector(patches)
    found = torch.stack(list(model.model.get_image_features(pixels).pooler_output))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    processor = load_processor(folder / "manifest.json")
    assert family.tile_tokens(processor) == patches.shape[1] == 4
    means = {"clip": 0.48145466, "siglip": 0.5, "dinov2": 0.485}
    assert processor.image_processor.image_mean[0] == means[name.split("_")[0]]
    assert processor.vision_feature_select_strategy == ("full" if "siglip" in name else "default")


def test_names_of_towers_are_those_that_lmdeploy_reads(vicuna: Path, clip: Path, tmp_path: Path) -> None:
    folder = build(tmp_path / "model", language=vicuna, vision=clip, template="vicuna")
    names = {name for name in Checkpoint(folder).kinds if name.startswith("vision_tower.")}
    assert names and all(name.startswith("vision_tower.vision_model.") for name in names)
    assert not any("text_model" in name or name.endswith("position_ids") for name in names)


def test_published_names_of_dinov2(vicuna: Path, tmp_path: Path) -> None:
    vision = make_vision(tmp_path / "vision", "dinov2")
    one = values(build(tmp_path / "one", language=vicuna, vision=vision, template="vicuna"))
    published = {
        "attention.q_proj": "attention.attention.query",
        "attention.k_proj": "attention.attention.key",
        "attention.v_proj": "attention.attention.value",
        "attention.o_proj": "attention.output.dense",
    }
    tensors = {}
    for key, value in values(vision).items():
        name = key
        for new, old in published.items():
            name = name.replace(new, old)
        tensors[name] = value
    assert any("attention.attention.query" in name for name in tensors)
    write_weights(tensors, vision, 1)
    assert equal(one, values(build(tmp_path / "two", language=vicuna, vision=vision, template="vicuna")))


@torch.no_grad()
def test_dinov2_for_larger_pictures(vicuna: Path, tmp_path: Path) -> None:
    vision = make_vision(tmp_path / "vision", "dinov2")
    model = loaded(build(tmp_path / "model", language=vicuna, vision=vision, template="vicuna", image_size=56))
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    expected = Dinov2Model.from_pretrained(vision).eval()(pixels).last_hidden_state
    found = model.model.vision_tower(pixels).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert model.config.vision_config.image_size == 56


@pytest.mark.parametrize("tie", [True, False])
def test_the_placeholder_gets_the_mean_of_the_others(tie: bool, tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path, tie=tie).parent
    before, after = values(tmp_path / "language"), values(folder)
    tables = ["model.embed_tokens.weight"] + ["lm_head.weight"] * (not tie)
    for name in tables:
        table, old = after[f"language_model.{name}"], before[name]
        assert len(table) == 320 and torch.equal(table[: len(old)], old)
        assert torch.equal(table[len(old) :], old.mean(0).expand(320 - len(old), -1))
    assert ("language_model.lm_head.weight" in after) is not tie
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    config = AutoConfig.from_pretrained(folder)
    assert processor.tokenizer.convert_tokens_to_ids(PLACEHOLDER) == config.image_token_index == config.pad_token_id
    assert config.text_config.pad_token_id == processor.tokenizer.pad_token_id != config.image_token_index


@pytest.mark.parametrize(
    ("tie", "first"),
    [(True, [-0.091670908, -0.0839788169, -0.126341268]), (False, [-0.0297160558, 0.171066076, 0.133313298])],
)
def test_a_seed_means_the_projector_that_it_always_meant(tie: bool, first: list[float], tmp_path: Path) -> None:
    """Values of the version before models were built tensor by tensor."""
    weight = values(make_tiny_model(tmp_path, tie=tie).parent)["multi_modal_projector.linear_1.weight"]
    torch.testing.assert_close(weight[0, :3], torch.tensor(first), rtol=1e-6, atol=0)


def test_number_formats(clip: Path, tmp_path: Path) -> None:
    language = make_language(tmp_path / "language", "llama", torch.bfloat16)
    kept = build(tmp_path / "kept", language=language, vision=clip, template="vicuna")
    assert {kind.dtype for kind in Checkpoint(kept).kinds.values()} == {torch.bfloat16}
    asked = build(tmp_path / "asked", language=language, vision=clip, template="vicuna", dtype="float16")
    assert {kind.dtype for kind in Checkpoint(asked).kinds.values()} == {torch.float16}
    config = read_json(asked / "config.json")
    assert [config["dtype"], config["text_config"]["dtype"], config["vision_config"]["dtype"]] == ["float16"] * 3


def test_generation_ends_with_the_turn(clip: Path, tmp_path: Path) -> None:
    language = make_language(tmp_path / "language", "qwen2")
    write_json(language / "generation_config.json", {"temperature": 0.9, "top_p": 0.6, "max_length": 4096})
    folder = build(tmp_path / "model", language=language, vision=clip)
    written, tokenizer = (
        read_json(folder / "generation_config.json"),
        load_processor(folder / "manifest.json").tokenizer,
    )
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in written["eos_token_id"]
    assert written["pad_token_id"] == tokenizer.pad_token_id and "temperature" not in written


def test_nothing_of_this_machine_or_of_remote_code_is_written(tmp_path: Path) -> None:
    language, vision = make_llava_parts(tmp_path, "llava-phi-3-mini")
    folder = build(tmp_path / "model", language=language, vision=vision)
    for file in folder.glob("*.json"):
        if file.name not in ("provenance.json", "manifest.json"):
            text = file.read_text(encoding="utf-8")
            assert str(tmp_path) not in text and "auto_map" not in text, file
    assert read_json(folder / "manifest.json")["template"] == "phi3"


def test_a_tied_model_that_stores_another_output_matrix(clip: Path, tmp_path: Path) -> None:
    language = make_language(tmp_path / "language", "qwen2")
    tensors = values(language)
    same = tensors["model.embed_tokens.weight"]
    write_weights({**tensors, "lm_head.weight": same.clone()}, language, 1)
    assert "language_model.lm_head.weight" not in values(build(tmp_path / "a", language=language, vision=clip))
    write_weights({**tensors, "lm_head.weight": same + 1}, language, 1)
    made = values(build(tmp_path / "b", language=language, vision=clip))
    assert torch.equal(made["language_model.lm_head.weight"][: len(same)], same + 1)
    assert read_json(tmp_path / "b" / "config.json")["tie_word_embeddings"] is False
