"""Small language models and vision towers as folders, and model directories built from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    CLIPConfig,
    CLIPModel,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from official_tokenizer import write_tokenizer
from vlmflow.files import write_json
from vlmflow.models.build import build_model
from vlmflow.weights.checkpoint import Checkpoint

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SEEING = {**SMALL, "num_hidden_layers": 3, "image_size": 28, "patch_size": 14}
NODE = {"family": "llava", "template": None, "image_size": None, "feature_layer": -2, "max_tiles": None,
        "dtype": None, "seed": 0}  # fmt: skip
LANGUAGES = {
    "llama": (LlamaConfig, "vicuna", {"num_key_value_heads": 1}),
    "mistral": (MistralConfig, "vicuna", {"num_key_value_heads": 1}),
    "qwen2": (Qwen2Config, "chatml", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "phi3": (Phi3Config, "phi3", {"num_key_value_heads": 1}),
}
IDS = torch.tensor([[3, 7, 20, 100, 9, 11, 4, 15]])


def make_language(folder: Path, name: str, dtype: torch.dtype = torch.float32) -> Path:
    """A random language model in ``folder`` as transformers saves it, with the tokenizer of its kind."""
    kind, _, more = LANGUAGES[name]
    folder.mkdir(parents=True)
    special = write_tokenizer(folder, "llama" if name == "mistral" else name, 10_000.0, pictures=False)
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(kind(**SMALL, **special, **more))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.to(dtype).save_pretrained(folder)
    return folder


def make_vision(folder: Path, name: str) -> Path:
    torch.manual_seed(2)
    models: dict[str, Callable[[], Any]] = {
        "clip": lambda: CLIPModel(CLIPConfig(vision_config=SEEING, text_config={**SMALL, "vocab_size": 32})),
        "clip_vision": lambda: CLIPVisionModel(CLIPConfig(vision_config=SEEING).vision_config),
        "siglip": lambda: SiglipModel(SiglipConfig(vision_config=SEEING, text_config={**SMALL, "vocab_size": 32})),
        "siglip_vision": lambda: SiglipVisionModel(SiglipVisionConfig(**SEEING)),
        "dinov2": lambda: Dinov2Model(Dinov2Config(**{**SEEING, "mlp_ratio": 2})),
    }
    models[name]().save_pretrained(folder)
    return folder


def build(output: Path, **node: Any) -> Path:
    places = {key: str(value) if isinstance(value, Path) else value for key, value in node.items()}
    build_model({**NODE, **places}, output / "manifest.json")
    return output


def loaded(folder: Path) -> Any:
    model, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


def values(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = Checkpoint(folder)
    return {name: checkpoint.read(name) for name in checkpoint.kinds}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def to_bin(folder: Path, shards: int) -> None:
    """Store the weights in PyTorch's format instead, with the buffers that old releases stored."""
    tensors = values(folder)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    (folder / "model.safetensors").unlink()
    names, index = sorted(tensors), {}
    for shard in range(shards):
        file = "pytorch_model.bin" if shards == 1 else f"pytorch_model-{shard + 1:05d}-of-{shards:05d}.bin"
        torch.save({name: tensors[name] for name in names[shard::shards]}, folder / file)
        index |= dict.fromkeys(names[shard::shards], file)
    if shards > 1:
        write_json(folder / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": index})
