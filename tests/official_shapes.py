"""Names and shapes of the tensors in published checkpoints, by their configuration, and small configurations."""

from __future__ import annotations

import copy
from typing import Any

HEAD_DIM = 16
LAYERS = 2
SIDE = 56
"""Tile side in pixels: 4 x 4 patches of 14, 4 tokens."""


def shrink(config: dict[str, Any], head_dim: int = HEAD_DIM, layers: int = LAYERS) -> dict[str, Any]:
    """The published configuration with few layers and heads and small widths; all else, and all ratios of heads, stay.

    The vocabulary is the published one: it is set to the twin's when its tokenizer is written.
    """
    small = copy.deepcopy(config)
    vision = small["vision_config"]
    heads = 2 + vision["num_attention_heads"] % 2
    vision.update(num_hidden_layers=layers, num_attention_heads=heads, hidden_size=head_dim * heads)
    vision.update(intermediate_size=3 * head_dim * heads, image_size=SIDE)
    small["force_image_size"] = SIDE
    small["llm_config"] = shrink_language(small["llm_config"], head_dim, layers)
    return small


def shrink_language(config: dict[str, Any], head_dim: int = HEAD_DIM, layers: int = LAYERS) -> dict[str, Any]:
    """The same for a language model's; changed in place and returned."""
    share = config["num_attention_heads"] // config["num_key_value_heads"]
    groups = 2 if share > 1 else 4
    hidden = share * groups * head_dim
    config.update(num_hidden_layers=layers, num_attention_heads=share * groups, num_key_value_heads=groups)
    config.update(hidden_size=hidden, intermediate_size=hidden + hidden // 2)
    scaling = config.get("rope_scaling") or {}
    for factors in scaling.keys() & {"long_factor", "short_factor"}:
        step = len(scaling[factors]) // (head_dim // 2)
        scaling[factors] = scaling[factors][::step][: head_dim // 2]
    return config


def official_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of an official InternVL checkpoint, before quantisation."""
    vision, hidden = config["vision_config"], config["llm_config"]["hidden_size"]
    wide = round(vision["hidden_size"] / config["downsample_ratio"] ** 2)
    projector = {
        "mlp1.0.weight": (wide,),
        "mlp1.0.bias": (wide,),
        "mlp1.1.weight": (hidden, wide),
        "mlp1.1.bias": (hidden,),
        "mlp1.3.weight": (hidden, hidden),
        "mlp1.3.bias": (hidden,),
    }
    return {**vision_shapes(vision), **language_shapes(config["llm_config"]), **projector}


def vision_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Source: modeling_intern_vit.py."""
    hidden, inner, patch = config["hidden_size"], config["intermediate_size"], config["patch_size"]
    layer: dict[str, tuple[int, ...]] = {
        "attn.qkv.weight": (3 * hidden, hidden),
        "attn.proj.weight": (hidden, hidden),
        "attn.proj.bias": (hidden,),
        "mlp.fc1.weight": (inner, hidden),
        "mlp.fc1.bias": (inner,),
        "mlp.fc2.weight": (hidden, inner),
        "mlp.fc2.bias": (hidden,),
        **dict.fromkeys(("norm1.weight", "norm2.weight", "ls1", "ls2"), (hidden,)),
    }
    if config["qkv_bias"]:
        layer["attn.qkv.bias"] = (3 * hidden,)
    if config["qk_normalization"]:
        layer |= {"attn.q_norm.weight": (hidden,), "attn.k_norm.weight": (hidden,)}
    if config["norm_type"] == "layer_norm":
        layer |= {"norm1.bias": (hidden,), "norm2.bias": (hidden,)}
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.class_embedding": (1, 1, hidden),
        "embeddings.position_embedding": (1, (config["image_size"] // patch) ** 2 + 1, hidden),
        "embeddings.patch_embedding.weight": (hidden, 3, patch, patch),
        "embeddings.patch_embedding.bias": (hidden,),
    }
    for index in range(config["num_hidden_layers"]):
        shapes |= {f"encoder.layers.{index}.{name}": shape for name, shape in layer.items()}
    return {f"vision_model.{name}": shape for name, shape in shapes.items()}


def language_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Source: modeling_internlm2.py, modeling_phi3.py and transformers' Qwen2 and Llama."""
    rows, hidden, inner = config["vocab_size"], config["hidden_size"], config["intermediate_size"]
    head = hidden // config["num_attention_heads"]
    keys = config["num_key_value_heads"] * head
    fused = hidden + 2 * keys
    layer: dict[str, tuple[int, ...]]
    if config["model_type"] == "internlm2":
        ends = {"model.tok_embeddings.weight": (rows, hidden), "output.weight": (rows, hidden)}
        layer = {
            "attention.wqkv.weight": (fused, hidden),
            "attention.wo.weight": (hidden, hidden),
            "feed_forward.w1.weight": (inner, hidden),
            "feed_forward.w3.weight": (inner, hidden),
            "feed_forward.w2.weight": (hidden, inner),
            "attention_norm.weight": (hidden,),
            "ffn_norm.weight": (hidden,),
        }
    else:
        ends = {"model.embed_tokens.weight": (rows, hidden), "lm_head.weight": (rows, hidden)}
        layer = {
            "self_attn.o_proj.weight": (hidden, hidden),
            "mlp.down_proj.weight": (hidden, inner),
            "input_layernorm.weight": (hidden,),
            "post_attention_layernorm.weight": (hidden,),
        }
        if config["model_type"] == "phi3":
            layer |= {"self_attn.qkv_proj.weight": (fused, hidden), "mlp.gate_up_proj.weight": (2 * inner, hidden)}
        else:
            layer |= {"mlp.gate_proj.weight": (inner, hidden), "mlp.up_proj.weight": (inner, hidden)}
            for part, size in (("q", hidden), ("k", keys), ("v", keys)):
                layer[f"self_attn.{part}_proj.weight"] = (size, hidden)
                if config["model_type"] == "qwen2":
                    layer[f"self_attn.{part}_proj.bias"] = (size,)
    shapes: dict[str, tuple[int, ...]] = {**ends, "model.norm.weight": (hidden,)}
    for index in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    return {f"language_model.{name}": shape for name, shape in shapes.items()}
