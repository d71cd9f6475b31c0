"""Every published model's way: official layout -> model directory -> a LoRA step -> merged -> official layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_training import execution, finetune_options

from conftest import make_tokens
from official import make_llava_parts, make_official
from reference import reference_logits
from vlmflow.convert.official import convert_official
from vlmflow.data.read import load_pictures, read_split
from vlmflow.data.records import Turn
from vlmflow.merge import merge_adapter
from vlmflow.models.build import build_model
from vlmflow.models.directory import load_model, load_processor
from vlmflow.models.pictures import picture_lengths, pixel_values
from vlmflow.models.published import published, published_names
from vlmflow.models.template import encode_prompt
from vlmflow.training.finetune import train_adapter
from vlmflow.weights.checkpoint import Checkpoint

Options = Callable[..., dict[str, Any]]
INTERNVL = [name for name in published_names() if published(name).family == "internvl"]
LORA = {"rank": 4, "alpha": 8, "dropout": 0.0, "variant": "lora", "vision_rank": 2, "vision_alpha": 4}


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = Checkpoint(folder)
    return {name: checkpoint.read(name) for name in checkpoint.kinds}


def build(output: Path, **places: Any) -> Path:
    node = {"template": None, "max_tiles": None, "image_size": None, "feature_layer": -2, "dtype": "float32", "seed": 0}
    build_model({**node, **places}, output / "manifest.json")
    return output / "manifest.json"


def tuned(model: Path, data: Path, folder: Path, training: Options) -> Path:
    """One epoch of LoRA on language model, tower and projector; merged."""
    tokens = make_tokens(model, [data], folder / "tokens")
    options = finetune_options(training, lora=LORA, learning_rate=0.02)
    adapter, merged = folder / "adapter" / "manifest.json", folder / "merged" / "manifest.json"
    train_adapter(options, model, [], tokens, execution(), folder / "state", adapter)
    merge_adapter({"base": "original"}, model, adapter, merged)
    return merged


@torch.no_grad()
def native_logits(model: Path, data: Path) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits for a prompt with a picture that becomes several tiles, and the inputs."""
    processor, network = load_processor(model), load_model(model, dtype=torch.float32)
    record = read_split(data, "test")[0]
    sizes = [(image.width, image.height) for image in record.images]
    turns = [Turn("user", "<image>\nWhat is this?")]
    ids = encode_prompt(processor.tokenizer, turns, picture_lengths(processor, sizes))
    inputs = {"input_ids": torch.tensor([ids]), "pixel_values": pixel_values(processor, load_pictures(record))}
    return network(**inputs).logits[0], inputs


@pytest.mark.parametrize("name", INTERNVL)
def test_internvl_there_and_back(name: str, tiny_data: Path, tmp_path: Path, training: Options) -> None:
    source = make_official(name, tmp_path / "source", dtype=torch.float32, shards=2)
    model = build(tmp_path / "model", family="internvl", checkpoint=str(source), max_tiles=2)
    expected, inputs = native_logits(model, tiny_data)
    torch.testing.assert_close(reference_logits(source, **inputs)[0], expected, atol=1e-4, rtol=1e-4)

    merged = tuned(model, tiny_data, tmp_path, training)
    convert_official(merged, tmp_path / "official" / "manifest.json")
    learnt, inputs = native_logits(merged, tiny_data)
    assert (learnt - expected).abs().max() > 1e-2, "training has an effect"
    torch.testing.assert_close(reference_logits(tmp_path / "official", **inputs)[0], learnt, atol=1e-4, rtol=1e-4)

    before, after = tensors(source), tensors(tmp_path / "official")
    quantised = {stem for key in before if (stem := key.removesuffix(".SCB")) != key}
    assert set(after) == {key for key in before if not key.endswith((".SCB", ".weight_format"))}
    stored = [key for key in after if key.removesuffix(".weight") not in quantised]
    changed = {key for key in stored if not torch.equal(after[key], before[key])}
    assert not any("embed" in key or "norm" in key or "output" in key or "lm_head" in key for key in changed)
    assert {key.split(".")[0] for key in changed} >= {"vision_model", "mlp1"}
    for file in ("modeling_internvl_chat.py", "conversation.py", "generation_config.json"):
        assert (tmp_path / "official" / file).read_bytes() == (source / file).read_bytes()


def test_llava_from_its_parts(tiny_data: Path, tmp_path: Path, training: Options) -> None:
    language, vision = make_llava_parts(tmp_path / "parts", dtype=torch.float32)
    model = build(tmp_path / "model", family="llava", language=str(language), vision=str(vision))
    expected, _ = native_logits(model, tiny_data)
    merged = tuned(model, tiny_data, tmp_path, training)
    assert (native_logits(merged, tiny_data)[0] - expected).abs().max() > 1e-2
    before, after = tensors(model.parent), tensors(merged.parent)
    assert set(before) == set(after)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed and not any("embed" in name or "norm" in name or "lm_head" in name for name in changed)
