"""The configuration of an official InternVL model as transformers' own InternVL has it.

Source: configuration_internvl_chat.py, configuration_intern_vit.py and modeling_internvl_chat.py of the published
models (OpenGVLab/InternVL, internvl_chat/internvl/model/internvl_chat).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from transformers import InternVLConfig, InternVLVisionConfig, LlamaConfig, Phi3Config, PreTrainedConfig, Qwen2Config
from transformers.activations import ACT2FN
from transformers.models.internvl.modeling_internvl import NORM2FN

from vlmflow.convert.internlm2 import llama_config
from vlmflow.convert.layout import checking
from vlmflow.errors import UserError
from vlmflow.models.directory import set_dtype

INTERNLM2 = "InternLM2ForCausalLM"
LANGUAGE_CONFIGS: dict[str, type[PreTrainedConfig]] = {
    "LlamaForCausalLM": LlamaConfig,
    "Qwen2ForCausalLM": Qwen2Config,
    "Phi3ForCausalLM": Phi3Config,
}
_COMMON = {field.name for field in fields(PreTrainedConfig)}
_VISION_KEYS = {  # official name -> transformers' name, default of configuration_intern_vit.py
    "hidden_size": ("hidden_size", 3200),
    "intermediate_size": ("intermediate_size", 12800),
    "num_hidden_layers": ("num_hidden_layers", 48),
    "num_attention_heads": ("num_attention_heads", 25),
    "num_channels": ("num_channels", 3),
    "image_size": ("image_size", 224),
    "patch_size": ("patch_size", 14),
    "qkv_bias": ("attention_bias", False),
    "qk_normalization": ("use_qk_norm", True),
    "norm_type": ("norm_type", "rms_norm"),
    "hidden_act": ("hidden_act", "gelu"),
    "layer_norm_eps": ("layer_norm_eps", 1e-6),
    "attention_dropout": ("attention_dropout", 0.0),
    "dropout": ("projection_dropout", 0.0),
    "initializer_range": ("initializer_range", 0.02),
    "initializer_factor": ("layer_scale_init_value", 0.1),
}
_SIZES = {
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "image_size",
    "patch_size", "num_channels", "vocab_size", "max_position_embeddings",
}  # fmt: skip
_QK_NORM_EPS = 1e-6  # transformers' InternVLVisionAttention has no setting for it


def native_config(official: Mapping[str, Any], image_token_id: int | None = None) -> InternVLConfig:
    """The configuration that computes what ``official``, the content of the official config.json, does.

    ``image_token_id`` is the id of <IMG_CONTEXT>, which the tokenizer knows; None leaves transformers' default, good
    for names and shapes only. Raises :class:`UserError` where transformers cannot compute the same.
    """
    with checking("broken configuration"):
        return _native_config(official, image_token_id)


def _native_config(official: Mapping[str, Any], image_token_id: int | None) -> InternVLConfig:
    check_official(official)
    text = text_config(official["llm_config"])
    vision = _vision_config(official["vision_config"])
    ratio = float(official.get("downsample_ratio", 0.5))
    token = {} if image_token_id is None else {"image_token_id": image_token_id}
    config = InternVLConfig(
        text_config=text,
        vision_config=vision,
        image_seq_length=tile_tokens(official),
        downsample_ratio=ratio,
        projector_hidden_act="gelu",
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=text.tie_word_embeddings,
        architectures=["InternVLForConditionalGeneration"],
        **token,
    )
    set_dtype(config, official_dtype(official))
    return config


def check_official(official: Mapping[str, Any]) -> None:
    """Raise :class:`UserError` unless this is the configuration of an InternVL that transformers can compute."""
    if not isinstance(official, dict):
        raise UserError("broken configuration: it is no JSON object")
    if official.get("model_type") != "internvl_chat":
        found = official.get("model_type") or official.get("architectures")
        raise UserError(f"wrong family: {found}, not internvl_chat (official InternVL)", field="model_type")
    lacking = [key for key in ("vision_config", "llm_config") if not isinstance(official.get(key), dict)]
    if lacking:
        raise UserError(f"broken configuration: there is no {' and no '.join(lacking)}")
    for part in ("vision_config", "llm_config"):
        for key in _SIZES & official[part].keys():
            size = official[part][key]
            if isinstance(size, int) and size < 1:
                raise UserError(f"broken configuration: {key} is {size}", field=f"{part}.{key}")
        for key, known in (("hidden_act", ACT2FN), ("norm_type", NORM2FN)):
            name = official[part].get(key)
            if name is not None and name not in known:
                reason = f"unsupported model: {key} {name}"
                raise UserError(reason, f"there is {', '.join(sorted(known))}", field=f"{part}.{key}")
    version = official.get("ps_version", "v1")
    if version != "v2":
        raise UserError(
            f"unsupported model: pixel shuffle {version} has the tokens of a picture in transposed order",
            "transformers computes v2 only, and no change of the weights can reorder tokens; use a model with v2",
            field="ps_version",
        )
    _require(official, "select_layer", -1, "only the last layer of the vision tower is supported")
    _require(official, "pad2square", False, "transformers' InternVL does not pad pictures to squares")
    for key in ("use_backbone_lora", "use_llm_lora"):
        _require(official, key, 0, "merge the LoRA with InternVL's tools/merge_lora.py first")
    tile_range(official)
    if official.get("dynamic_image_size", False):
        _require(official, "use_thumbnail", True, "transformers adds a thumbnail whenever it cuts tiles", default=False)
    ratio = float(official.get("downsample_ratio", 0.5))
    side = _side(official) // official["vision_config"].get("patch_size", 14)
    if not 0 < ratio <= 1 or (1 / ratio) % 1 or side % int(1 / ratio):
        raise UserError(
            f"broken configuration: a grid of {side} x {side} patches cannot be reduced by {ratio}",
            field="downsample_ratio",
        )


def tile_tokens(official: Mapping[str, Any]) -> int:
    """Tokens that the language model sees of one tile."""
    patches = _side(official) // official["vision_config"].get("patch_size", 14)
    return int(patches**2 * float(official.get("downsample_ratio", 0.5)) ** 2)


def tile_side(official: Mapping[str, Any]) -> int:
    """Side of a tile in pixels."""
    return _side(official)


def tile_range(official: Mapping[str, Any], max_tiles: int | None = None) -> tuple[int, int]:
    """The fewest and the most tiles of a picture, thumbnail apart; ``max_tiles`` None takes the model's own limit.

    Raises :class:`UserError` if there is no number between them.
    """
    dynamic = official.get("dynamic_image_size", False)
    if not dynamic and max_tiles is not None and max_tiles != 1:
        raise UserError(
            f"unsupported option: {max_tiles} tiles for a model that sees a picture as one (dynamic_image_size false)",
            "leave max_tiles out",
            field="max_tiles",
        )
    fewest, most = (official.get("min_dynamic_patch", 1), official.get("max_dynamic_patch", 6)) if dynamic else (1, 1)
    for key, value in (("min_dynamic_patch", fewest), ("max_dynamic_patch", most)):
        if not isinstance(value, int) or value < 1:
            raise UserError(f"broken configuration: {key} {value!r} is no number of tiles", field=key)
    if fewest > most:
        raise UserError(
            f"broken configuration: at least {fewest} and at most {most} tiles of a picture", field="min_dynamic_patch"
        )
    if max_tiles is not None and max_tiles < fewest:
        raise UserError(
            f"unsupported option: at most {max_tiles} tiles for a model that cuts {fewest} (min_dynamic_patch)",
            f"give max_tiles {fewest} or more",
            field="max_tiles",
        )
    return fewest, most if max_tiles is None else max_tiles


def language_architecture(official_llm: Mapping[str, Any]) -> str:
    """The class name of the language model; :class:`UserError` for one that is not known."""
    name = str((official_llm.get("architectures") or [None])[0])
    known = (INTERNLM2, *LANGUAGE_CONFIGS)
    if name not in known:
        raise UserError(
            f"unsupported model: no language model of architecture {name}",
            f"there is {', '.join(known)}",
            field="llm_config.architectures",
        )
    return name


def text_config(official_llm: Mapping[str, Any]) -> PreTrainedConfig:
    """The language model's configuration; InternLM2 becomes a Llama.

    ``architectures`` is set, LMDeploy's PyTorch engine needs it there.
    """
    name = language_architecture(official_llm)
    if name == INTERNLM2:
        config: PreTrainedConfig = llama_config(official_llm)
        config.architectures = ["LlamaForCausalLM"]
        return config
    kind = LANGUAGE_CONFIGS[name]
    known = {field.name for field in fields(kind)} - _COMMON - {"rope_parameters", "layer_types"}
    given = {key: value for key, value in official_llm.items() if key in known}
    config = kind(**given, rope_parameters=_rope_parameters(official_llm, name))
    config.architectures = [name]
    return config


def official_dtype(official: Mapping[str, Any]) -> torch.dtype:
    """The number format that the model is to compute in."""
    name = official.get("torch_dtype") or official["llm_config"].get("torch_dtype") or "bfloat16"
    dtype = getattr(torch, str(name).removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise UserError(f"broken configuration: no number format {name}", field="torch_dtype")
    return dtype


def _vision_config(official: Mapping[str, Any]) -> InternVLVisionConfig:
    values = {new: official.get(old, default) for old, (new, default) in _VISION_KEYS.items()}
    if values["use_qk_norm"] and values["layer_norm_eps"] != _QK_NORM_EPS:
        raise UserError(
            f"unsupported model: queries and keys are normalised with epsilon {values['layer_norm_eps']}",
            f"transformers does with {_QK_NORM_EPS} only",
            field="vision_config.layer_norm_eps",
        )
    values["image_size"], values["patch_size"] = [values["image_size"]] * 2, [values["patch_size"]] * 2
    return InternVLVisionConfig(**values, use_mean_pooling=True, use_absolute_position_embeddings=True)


def _rope_parameters(official: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    theta = float(official.get("rope_theta", 10_000.0))
    scaling = dict(official.get("rope_scaling") or {})
    kind = scaling.pop("type", None)
    kind = scaling.pop("rope_type", kind)
    if not scaling:
        return {"rope_type": "default", "rope_theta": theta}
    if architecture == "Phi3ForCausalLM":
        if kind not in ("su", "longrope"):  # its own yarn scales otherwise than transformers'
            raise UserError(
                f"unsupported model: Phi-3 with '{kind}' position scaling",
                "there is su (longrope)",
                field="rope_scaling",
            )
        scaling["original_max_position_embeddings"] = official["original_max_position_embeddings"]
        kind = "longrope"
    return {**scaling, "rope_type": kind, "rope_theta": theta}


def _require(official: Mapping[str, Any], key: str, wanted: Any, advice: str, **other: Any) -> None:
    value = official.get(key, other.get("default", wanted))
    if value != wanted:
        raise UserError(f"unsupported model: {key} {value}", advice, field=key)


def _side(official: Mapping[str, Any]) -> int:
    return int(official.get("force_image_size") or official["vision_config"].get("image_size", 224))
