"""Forward passes of official checkpoints by hand, on the tensors as they are stored, in float32.

Written after the published modeling files (modeling_intern_vit.py, modeling_internvl_chat.py, modeling_internlm2.py,
modeling_phi3.py; LLaVA's llava_arch.py), without transformers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import conv2d, gelu, layer_norm, silu

Tensors = Mapping[str, Tensor]
_PROJECTOR_EPS = 1e-5


def reference_logits(folder: Path, input_ids: Tensor, pixel_values: Tensor | None = None) -> Tensor:
    """(batch, length, vocabulary) logits of an official InternVL directory.

    ``input_ids``: (batch, length), no padding; ``pixel_values``: (tiles, 3, side, side), normalised, in the order of
    the <IMG_CONTEXT> tokens.
    """
    config, tensors = _json(folder / "config.json"), official_tensors(folder)
    embeddings = embed(tensors, config["llm_config"], input_ids, "language_model.")
    if pixel_values is not None:
        context = _json(folder / "added_tokens.json")["<IMG_CONTEXT>"]
        features = picture_tokens(tensors, config, pixel_values)
        embeddings[input_ids == context] = features.flatten(0, 1)
    return language_logits(tensors, config["llm_config"], embeddings, "language_model.")


def reference_language_logits(folder: Path, input_ids: Tensor) -> Tensor:
    """(batch, length, vocabulary) logits of the directory of a language model alone."""
    config, tensors = _json(folder / "config.json"), official_tensors(folder)
    return language_logits(tensors, config, embed(tensors, config, input_ids))


def official_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a directory in float32, 8-bit ones multiplied out, the helpers of those left out."""
    stored: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        stored |= load_file(file)
    tensors = {}
    for name, value in stored.items():
        if value.dtype == torch.int8:
            scale = stored[name.removesuffix("weight") + "SCB"].float()
            tensors[name] = value.float() * scale.unsqueeze(1) / 127
        elif not name.endswith((".SCB", ".weight_format")):
            tensors[name] = value.float()
    return tensors


def embed(tensors: Tensors, config: Mapping[str, Any], input_ids: Tensor, prefix: str = "") -> Tensor:
    """(batch, length, hidden) embeddings of tokens."""
    name = "tok_embeddings" if config["model_type"] == "internlm2" else "embed_tokens"
    return tensors[f"{prefix}model.{name}.weight"][input_ids].clone()


def picture_tokens(tensors: Tensors, config: Mapping[str, Any], pixel_values: Tensor) -> Tensor:
    """(tiles, tokens, hidden of the language model) of InternViT, pixel shuffle and mlp1."""
    if config["select_layer"] != -1:
        raise NotImplementedError("only the last layer")
    hidden = intern_vit(tensors, config["vision_config"], pixel_values)[:, 1:]
    side = math.isqrt(hidden.shape[1])
    shuffled = pixel_shuffle(hidden.view(len(hidden), side, side, -1), config["downsample_ratio"], config["ps_version"])
    wide = shuffled.flatten(1, 2)
    wide = layer_norm(wide, wide.shape[-1:], *_affine(tensors, "mlp1.0"), _PROJECTOR_EPS)
    return _linear(gelu(_linear(wide, tensors, "mlp1.1")), tensors, "mlp1.3")


def pixel_shuffle(grid: Tensor, ratio: float, version: str) -> Tensor:
    """(tiles, rows, columns, hidden) to (tiles, rows x ratio, columns x ratio, hidden / ratio^2); v1 transposes it."""
    tiles, rows, columns, hidden = grid.shape
    out = grid.reshape(tiles, rows, int(columns * ratio), int(hidden / ratio)).permute(0, 2, 1, 3)
    out = out.reshape(tiles, int(columns * ratio), int(rows * ratio), int(hidden / ratio**2))
    return out if version == "v1" else out.permute(0, 2, 1, 3)


def intern_vit(tensors: Tensors, config: Mapping[str, Any], pixel_values: Tensor) -> Tensor:
    """(tiles, 1 + patches, hidden) of the last layer."""
    first = "vision_model.embeddings."
    patches = conv2d(
        pixel_values.float(),
        tensors[f"{first}patch_embedding.weight"],
        tensors[f"{first}patch_embedding.bias"],
        stride=config["patch_size"],
    )
    patches = patches.flatten(2).transpose(1, 2)
    start = tensors[f"{first}class_embedding"].expand(len(patches), -1, -1)
    hidden = torch.cat([start, patches], 1) + tensors[f"{first}position_embedding"]
    for index in range(config["num_hidden_layers"]):
        hidden = _vit_layer(tensors, config, f"vision_model.encoder.layers.{index}.", hidden)
    return hidden


def _vit_layer(tensors: Tensors, config: Mapping[str, Any], layer: str, hidden: Tensor) -> Tensor:
    heads, eps = config["num_attention_heads"], config["layer_norm_eps"]

    def norm(value: Tensor, name: str) -> Tensor:
        if config["norm_type"] == "rms_norm":
            return _rms(value, tensors[f"{layer}{name}.weight"], eps)
        return layer_norm(value, value.shape[-1:], *_affine(tensors, layer + name), eps)

    q, k, v = _linear(norm(hidden, "norm1"), tensors, f"{layer}attn.qkv").chunk(3, -1)
    if config["qk_normalization"]:
        q, k = _rms(q, tensors[f"{layer}attn.q_norm.weight"], eps), _rms(k, tensors[f"{layer}attn.k_norm.weight"], eps)
    mixed = attention(_heads(q, heads), _heads(k, heads), _heads(v, heads), causal=False)
    hidden = hidden + _linear(mixed, tensors, f"{layer}attn.proj") * tensors[f"{layer}ls1"]
    inner = gelu(_linear(norm(hidden, "norm2"), tensors, f"{layer}mlp.fc1"))
    return hidden + _linear(inner, tensors, f"{layer}mlp.fc2") * tensors[f"{layer}ls2"]


def language_logits(tensors: Tensors, config: Mapping[str, Any], embeddings: Tensor, prefix: str = "") -> Tensor:
    """(batch, length, vocabulary) logits of InternLM2, Phi-3, Qwen2 or Llama."""
    turn = rotary(config, embeddings.shape[1])
    eps, fused = config["rms_norm_eps"], config["model_type"] == "internlm2"
    names = ("attention_norm", "ffn_norm") if fused else ("input_layernorm", "post_attention_layernorm")
    hidden = embeddings
    for index in range(config["num_hidden_layers"]):
        layer = f"{prefix}model.layers.{index}."
        normed = _rms(hidden, tensors[f"{layer}{names[0]}.weight"], eps)
        q, k, v = _queries_keys_values(tensors, config, layer, normed)
        share = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
        mixed = attention(_turned(q, *turn), _turned(k, *turn), v, causal=True)
        hidden = hidden + _linear(mixed, tensors, layer + ("attention.wo" if fused else "self_attn.o_proj"))
        normed = _rms(hidden, tensors[f"{layer}{names[1]}.weight"], eps)
        hidden = hidden + _feed_forward(tensors, config, layer, normed)
    hidden = _rms(hidden, tensors[f"{prefix}model.norm.weight"], eps)
    return _linear(hidden, tensors, prefix + ("output" if fused else "lm_head"))


def _queries_keys_values(
    tensors: Tensors, config: Mapping[str, Any], layer: str, value: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(batch, heads or key-value heads, length, head size) each."""
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    size = config["hidden_size"] // heads
    if config["model_type"] == "internlm2":
        fused = _linear(value, tensors, f"{layer}attention.wqkv")
        parts = fused.unflatten(-1, (groups, heads // groups + 2, size))
        q = parts[..., :-2, :].flatten(2, 3).transpose(1, 2)
        return q, parts[..., -2, :].transpose(1, 2), parts[..., -1, :].transpose(1, 2)
    if config["model_type"] == "phi3":
        fused = _linear(value, tensors, f"{layer}self_attn.qkv_proj")
        q, k, v = fused.split([heads * size, groups * size, groups * size], -1)
    else:
        q, k, v = (_linear(value, tensors, f"{layer}self_attn.{part}_proj") for part in "qkv")
    return _heads(q, heads), _heads(k, groups), _heads(v, groups)


def _feed_forward(tensors: Tensors, config: Mapping[str, Any], layer: str, value: Tensor) -> Tensor:
    if config["model_type"] == "internlm2":
        gate, up = (_linear(value, tensors, f"{layer}feed_forward.w{index}") for index in (1, 3))
        return _linear(silu(gate) * up, tensors, f"{layer}feed_forward.w2")
    if config["model_type"] == "phi3":
        gate, up = _linear(value, tensors, f"{layer}mlp.gate_up_proj").chunk(2, -1)
    else:
        gate, up = (_linear(value, tensors, f"{layer}mlp.{part}_proj") for part in ("gate", "up"))
    return _linear(silu(gate) * up, tensors, f"{layer}mlp.down_proj")


def rotary(config: Mapping[str, Any], length: int) -> tuple[Tensor, Tensor]:
    """(length, head size) cosines and sines; Phi-3's longrope scales frequencies and both of these.

    Dynamic NTK changes nothing up to ``max_position_embeddings``; longer texts are refused.
    """
    size = config["hidden_size"] // config["num_attention_heads"]
    limit = config["max_position_embeddings"]
    if length > limit:
        raise NotImplementedError("longer than max_position_embeddings")
    frequencies = float(config["rope_theta"]) ** (-torch.arange(0, size, 2).float() / size)
    scaling, scale = config.get("rope_scaling") or {}, 1.0
    if scaling.get("type") in ("su", "longrope"):
        original = config["original_max_position_embeddings"]
        frequencies /= torch.tensor(scaling["short_factor" if length <= original else "long_factor"])
        scale = math.sqrt(1 + math.log(limit / original) / math.log(original))
    elif scaling.get("type") not in (None, "dynamic"):
        raise NotImplementedError(scaling["type"])
    angles = torch.outer(torch.arange(length).float(), frequencies).repeat(1, 2)
    return angles.cos() * scale, angles.sin() * scale


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Softmax attention of (batch, heads, length, head size); (batch, length, heads x head size)."""
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if causal:
        scores = scores + torch.full(scores.shape[-2:], float("-inf")).triu(1)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def _turned(value: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    left, right = value.chunk(2, -1)
    return value * cosine + torch.cat([-right, left], -1) * sine


def _heads(value: Tensor, heads: int) -> Tensor:
    return value.unflatten(-1, (heads, -1)).transpose(1, 2)


def _rms(value: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * value * torch.rsqrt(value.square().mean(-1, keepdim=True) + eps)


def _affine(tensors: Tensors, name: str) -> tuple[Tensor, Tensor]:
    return tensors[f"{name}.weight"], tensors[f"{name}.bias"]


def _linear(value: Tensor, tensors: Tensors, name: str) -> Tensor:
    product = value @ tensors[f"{name}.weight"].T
    return product + tensors[f"{name}.bias"] if f"{name}.bias" in tensors else product


def _json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))
