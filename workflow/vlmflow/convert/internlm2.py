"""InternLM2 as a Llama: the same computation under other names, with queries, keys and values in matrices of their own.

Source: modeling_internlm2.py of the published models. ``wqkv`` holds, for every key-value head, the query heads that
share it, then its key, then its value; splitting it only moves rows, so the way back is exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import LlamaConfig

from vlmflow.errors import UserError
from vlmflow.weights.mapping import Operation, Rule

_NAMES = {
    "model.tok_embeddings.weight": "model.embed_tokens.weight",
    "model.norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "model.layers.*.attention_norm.weight": "model.layers.*.input_layernorm.weight",
    "model.layers.*.ffn_norm.weight": "model.layers.*.post_attention_layernorm.weight",
    "model.layers.*.attention.wo.weight": "model.layers.*.self_attn.o_proj.weight",
    "model.layers.*.attention.wo.bias": "model.layers.*.self_attn.o_proj.bias",
    "model.layers.*.feed_forward.w1.weight": "model.layers.*.mlp.gate_proj.weight",
    "model.layers.*.feed_forward.w3.weight": "model.layers.*.mlp.up_proj.weight",
    "model.layers.*.feed_forward.w2.weight": "model.layers.*.mlp.down_proj.weight",
}
_SAME_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)
_DEFAULTS = {  # configuration_internlm2.py
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
_ROPE_TYPES = ("linear", "dynamic")


def rules(prefix_source: str, prefix_target: str, heads: int, kv_heads: int, head_dim: int) -> list[Rule]:
    """From InternLM2's tensors to Llama's, each name after its prefix (``language_model.``, or nothing)."""
    fused = grouped_qkv(heads, kv_heads, head_dim)
    split = [
        Rule(
            (f"{prefix_source}model.layers.*.attention.wqkv.{kind}",),
            tuple(f"{prefix_target}model.layers.*.self_attn.{part}_proj.{kind}" for part in "qkv"),
            fused,
        )
        for kind in ("weight", "bias")
    ]
    return split + [Rule((prefix_source + old,), (prefix_target + new,)) for old, new in _NAMES.items()]


def grouped_qkv(heads: int, kv_heads: int, head_dim: int) -> Operation:
    """``wqkv`` (rows: key-value heads x (queries of each + 2) x ``head_dim``) to q, k and v, and back."""
    share = heads // kv_heads

    def split(fused: torch.Tensor) -> tuple[torch.Tensor, ...]:
        _check_rows(fused, heads + 2 * kv_heads, head_dim)
        rest = fused.shape[1:]
        groups = fused.reshape(kv_heads, share + 2, head_dim, *rest)
        parts = groups[:, :share], groups[:, share], groups[:, share + 1]
        return tuple(part.reshape(-1, *rest) for part in parts)

    def join(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, ...]:
        for part, count in ((query, heads), (key, kv_heads), (value, kv_heads)):
            _check_rows(part, count, head_dim)
        rest = query.shape[1:]
        parts = (part.reshape(kv_heads, -1, head_dim, *rest) for part in (query, key, value))
        return (torch.cat(tuple(parts), dim=1).reshape(-1, *rest),)

    return Operation(split, join)


def _check_rows(part: torch.Tensor, heads: int, head_dim: int) -> None:
    if part.shape[0] != heads * head_dim:
        raise UserError(
            f"misshapen tensor: queries, keys and values of {part.shape[0]} rows, not {heads} heads of {head_dim}",
            "check that config.json belongs to these weights",
        )


def rules_of(official: Mapping[str, Any], prefix_source: str = "", prefix_target: str = "") -> list[Rule]:
    """:func:`rules` with the sizes that InternLM2's configuration names."""
    heads = official["num_attention_heads"]
    kv_heads = official.get("num_key_value_heads") or heads
    return rules(prefix_source, prefix_target, heads, kv_heads, official["hidden_size"] // heads)


def llama_config(official: Mapping[str, Any]) -> LlamaConfig:
    """The Llama configuration that computes what InternLM2's (the content of its config.json) does.

    ``dynamic`` position scaling has the same formula in both (base * (factor * n / max - factor + 1) ** (d / (d - 2))
    once a sequence has n > max_position_embeddings positions). Two differences remain beyond that length only:
    InternLM2 keeps the stretched frequencies for later, shorter sequences, and counts left padding as positions;
    transformers does neither.
    """
    if official.get("rope_pos_id_version", "default") != "default":
        raise UserError(
            f"unsupported model: InternLM2 with {official['rope_pos_id_version']} positions cannot be a Llama model"
        )
    missing = [key for key in _SAME_KEYS if key not in official]
    if missing:
        raise UserError(f"broken configuration: the language model lacks {', '.join(missing)}")
    heads, shared = official["num_attention_heads"], official.get("num_key_value_heads")
    if shared and heads % shared:
        raise UserError(f"broken configuration: {heads} attention heads cannot share {shared} of keys and values")
    bias = official.get("bias", True)
    return LlamaConfig(
        **{key: official[key] for key in _SAME_KEYS},
        **{key: official.get(key, default) for key, default in _DEFAULTS.items()},
        num_key_value_heads=official.get("num_key_value_heads") or official["num_attention_heads"],
        head_dim=official["hidden_size"] // official["num_attention_heads"],
        rope_parameters=_rope_parameters(official),
        attention_bias=bias,
        mlp_bias=False,
    )


def internlm2_config(config: LlamaConfig) -> dict[str, Any]:
    """The keys of InternLM2's configuration that :func:`llama_config` reads."""
    if config.mlp_bias:
        raise UserError("unsupported model: a Llama model with biases in its MLP cannot be an InternLM2 model")
    rope = config.rope_parameters
    scaled = rope["rope_type"] != "default"
    return {
        **{key: getattr(config, key) for key in (*_SAME_KEYS, *_DEFAULTS)},
        "num_key_value_heads": config.num_key_value_heads,
        "bias": config.attention_bias,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": rope["rope_type"], "factor": rope["factor"]} if scaled else None,
    }


def _rope_parameters(official: Mapping[str, Any]) -> dict[str, Any]:
    theta = float(official.get("rope_theta", 10_000))
    scaling = official.get("rope_scaling")
    if not scaling:
        return {"rope_type": "default", "rope_theta": theta}
    kind = scaling.get("type", scaling.get("rope_type"))
    if kind not in _ROPE_TYPES:
        raise UserError(
            f"unsupported model: InternLM2 has no position scaling '{kind}'", f"there is {', '.join(_ROPE_TYPES)}"
        )
    return {"rope_type": kind, "factor": float(scaling["factor"]), "rope_theta": theta}
