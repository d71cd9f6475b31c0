"""A tiny random twin of an official LLaVA 1.5 (haotian-liu/LLaVA), and its forward pass by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, gelu, layer_norm

from official import make_llava_parts, random_tensors, write_json, write_weights
from reference import Tensors, attention, embed, language_logits, official_tensors

PICTURE = -200
"""Id that stands for one picture in the prompt (IMAGE_TOKEN_INDEX of llava/constants.py)."""
_TOWER = "model.vision_tower.vision_tower."


def make_llava_official(
    folder: Path, seed: int = 0, dtype: torch.dtype = torch.float16, tower: bool = False, shards: int = 1
) -> tuple[Path, Path]:
    """Write a LLaVA-1.5-7B twin; returns ``folder``/llava and the CLIP, ``folder``/vision, that it names.

    With ``tower`` its checkpoint holds the vision tower too, as those do whose tower was trained.
    """
    language, vision = make_llava_parts(folder, "llava-vicuna-7b-v1.5", seed, dtype)
    llava = language.rename(folder / "llava")
    config = _json(llava / "config.json")
    clip = _json(vision / "config.json")["vision_config"]
    tensors = {name: value.to(dtype) for name, value in official_tensors(llava).items()}
    (llava / "model.safetensors").unlink()
    inner, outer = clip["hidden_size"], config["hidden_size"]
    projector = {"0.weight": (outer, inner), "0.bias": (outer,), "2.weight": (outer, outer), "2.bias": (outer,)}
    made = random_tensors({f"model.mm_projector.{name}": shape for name, shape in projector.items()}, seed + 1, dtype)
    if tower:
        halves = {name: value.to(dtype) for name, value in official_tensors(vision).items()}
        made |= {_TOWER + name: value for name, value in halves.items() if name.startswith("vision_model.")}
    write_weights(tensors | made, llava, shards)
    config |= {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        "mm_vision_tower": str(vision),
        "mm_hidden_size": inner,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": "pad",
        "image_grid_pinpoints": None,
        "tune_mm_mlp_adapter": False,
        "freeze_mm_mlp_adapter": False,
        "use_mm_proj": True,
        "unfreeze_mm_vision_tower": tower,
    }
    write_json(llava / "config.json", config)
    return llava, vision


def reference_llava_logits(folder: Path, vision: Path, input_ids: Tensor, pixel_values: Tensor) -> Tensor:
    """(1, length with pictures, vocabulary) logits of an official LLaVA directory, in float32.

    ``input_ids``: (1, length) with :data:`PICTURE` once per picture; ``pixel_values``: (pictures, 3, side, side);
    ``vision``: the CLIP directory, used unless the checkpoint holds the vision tower.
    """
    config, tensors = _json(folder / "config.json"), official_tensors(folder)
    inside = {name.removeprefix(_TOWER): value for name, value in tensors.items() if name.startswith(_TOWER)}
    clip = _json(vision / "config.json")["vision_config"]
    hidden = clip_patches(inside or official_tensors(vision), clip, pixel_values, config["mm_vision_select_layer"])
    for index in (0, 2):
        name = f"model.mm_projector.{index}"
        hidden = (gelu(hidden) if index else hidden) @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]
    embeddings = embed(tensors, config, input_ids.clamp(min=0))[0]
    pictures = iter(hidden)
    parts = [
        next(pictures) if token == PICTURE else embeddings[position : position + 1]
        for position, token in enumerate(input_ids[0].tolist())
    ]
    return language_logits(tensors, config, torch.cat(parts).unsqueeze(0))


def clip_patches(tensors: Tensors, config: dict[str, Any], pixel_values: Tensor, layer: int = -2) -> Tensor:
    """(pictures, patches, hidden) of CLIP's vision half after ``layer`` (-1: the last), class token left out."""
    first, eps = "vision_model.embeddings.", config["layer_norm_eps"]
    patches = conv2d(pixel_values.float(), tensors[f"{first}patch_embedding.weight"], stride=config["patch_size"])
    patches = patches.flatten(2).transpose(1, 2)
    start = tensors[f"{first}class_embedding"].expand(len(patches), 1, -1)
    hidden = torch.cat([start, patches], 1) + tensors[f"{first}position_embedding.weight"]
    hidden = _norm(hidden, tensors, "vision_model.pre_layrnorm", eps)
    for index in range(config["num_hidden_layers"] + 1 + layer):
        name = f"vision_model.encoder.layers.{index}."
        normed = _norm(hidden, tensors, f"{name}layer_norm1", eps)
        q, k, v = (
            _linear(normed, tensors, f"{name}self_attn.{part}_proj")
            .unflatten(-1, (config["num_attention_heads"], -1))
            .transpose(1, 2)
            for part in "qkv"
        )
        hidden = hidden + _linear(attention(q, k, v, causal=False), tensors, f"{name}self_attn.out_proj")
        inner = _linear(_norm(hidden, tensors, f"{name}layer_norm2", eps), tensors, f"{name}mlp.fc1")
        hidden = hidden + _linear(inner * torch.sigmoid(1.702 * inner), tensors, f"{name}mlp.fc2")
    return hidden[:, 1:]


def _norm(value: Tensor, tensors: Tensors, name: str, eps: float) -> Tensor:
    return layer_norm(value, value.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"], eps)


def _linear(value: Tensor, tensors: Tensors, name: str) -> Tensor:
    return value @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]


def _json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))
