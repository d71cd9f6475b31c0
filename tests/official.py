"""Tiny random twins of published checkpoints, in the layout that they were published in."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel

from official_shapes import HEAD_DIM, LAYERS, SIDE, language_shapes, official_shapes, shrink, shrink_language
from official_tokenizer import write_tokenizer
from vlmflow.models.published import published

_PICTURES = {
    "crop_size": SIDE,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "size": SIDE,
}
_REMOTE_CODE = 'raise RuntimeError("remote code must not run")\n'
_CODE = ("configuration_internvl_chat", "configuration_intern_vit", "modeling_internvl_chat", "modeling_intern_vit")
_LANGUAGE_CODE = {
    "internlm2": ("configuration_internlm2", "modeling_internlm2", "tokenization_internlm2"),
    "phi3": ("configuration_phi3", "modeling_phi3"),
}
_SYSTEM_2 = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
_SYSTEM_15 = {
    "Hermes-2": "Answer the questions.",
    "internlm2-chat": "You are an AI assistant whose name is InternLM (书生·浦语).",
    "phi3-chat": "You are an AI assistant whose name is Phi-3.",
}
_CHATML = ("<|im_start|>system\\n", "<|im_start|>user\\n", "<|im_start|>assistant\\n", "<|im_end|>")
_STYLES = {
    "Hermes-2": (*_CHATML, [2, 6, 7, 8]),
    "internlm2-chat": (*_CHATML, [2, 92543, 92542]),
    "phi3-chat": ("<|system|>\\n", "<|user|>\\n", "<|assistant|>\\n", "<|end|>", [2, 32000, 32007]),
}


def make_official(
    name: str,
    folder: Path,
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    shards: int = 1,
    head_dim: int | None = None,
    layers: int | None = None,
) -> Path:
    """Write a twin of the published InternVL model ``name`` into ``folder``; returns it.

    Names and ranks of the tensors are the published ones, numbers of layers and heads and all widths small: 2 layers
    and 16 numbers per head if not given otherwise.
    """
    config = shrink(published(name).config, head_dim or HEAD_DIM, layers or LAYERS)
    folder.mkdir(parents=True)
    llm = config["llm_config"]
    llm.update(write_tokenizer(folder, llm["model_type"], llm["rope_theta"], pictures=True))
    _name_dtype(config, dtype)
    tensors = random_tensors(official_shapes(config), seed, dtype)
    if "quantization_config" in config:
        tensors = _quantised(tensors, config["quantization_config"]["llm_int8_skip_modules"])
    write_weights(tensors, folder, shards)
    write_json(folder / "config.json", config)
    ends = sorted({llm["eos_token_id"], *([] if "v1.5" in name else _ends_of_turn(folder))})
    write_json(folder / "generation_config.json", {"_from_model_config": True, "eos_token_id": ends})
    write_json(folder / "preprocessor_config.json", _PICTURES)
    for module in (*_CODE, *_LANGUAGE_CODE.get(llm["model_type"], ())):
        (folder / f"{module}.py").write_text(_REMOTE_CODE, encoding="utf-8")
    (folder / "conversation.py").write_text(_conversations("v1.5" in name), encoding="utf-8")
    return folder


def make_llava_parts(
    folder: Path, name: str = "llava-internlm2-chat-1.8b", seed: int = 0, dtype: torch.dtype = torch.bfloat16
) -> tuple[Path, Path]:
    """Write twins of the InternLM2 and CLIP that LLaVA is built from; returns ``folder``/language and /vision."""
    parts = published(name).config
    language, vision = folder / "language", folder / "vision"
    config = shrink_language(copy.deepcopy(parts["language"]))
    language.mkdir(parents=True)
    config.update(write_tokenizer(language, config["model_type"], config["rope_theta"], pictures=False))
    config["torch_dtype"] = str(dtype).removeprefix("torch.")
    shapes = {name.removeprefix("language_model."): shape for name, shape in language_shapes(config).items()}
    write_weights(random_tensors(shapes, seed, dtype), language, 1)
    write_json(language / "config.json", config)
    write_json(language / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2})
    for module in _LANGUAGE_CODE.get(config["model_type"], ()):
        (language / f"{module}.py").write_text(_REMOTE_CODE, encoding="utf-8")
    _write_clip(parts["vision"], vision, seed, dtype)
    return language, vision


def random_tensors(shapes: dict[str, tuple[int, ...]], seed: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Values of a trained model's scale: matrices keep the size of their input, norms and layer scales are near 1."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator)
        if len(shape) == 1 and not name.endswith("bias"):
            value = 1 + 0.2 * value
        elif name.endswith("bias") or "_embedding" in name:
            value = 0.2 * value
        else:
            value = 1.5 / math.sqrt(math.prod(shape[1:])) * value
        tensors[name] = value.to(dtype)
    return tensors


def write_weights(tensors: dict[str, torch.Tensor], folder: Path, shards: int) -> None:
    """Write model.safetensors, or ``shards`` files and their index."""
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = sorted(tensors)
    size = math.ceil(len(names) / shards)
    weight_map: dict[str, str] = {}
    for index in range(shards):
        file = f"model-{index + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[index * size : (index + 1) * size]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    content = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", content)


def _ends_of_turn(folder: Path) -> list[int]:
    """Ids of the tokens that end a turn in the tokenizer of ``folder``."""
    vocabulary = json.loads((folder / "added_tokens.json").read_text(encoding="utf-8"))
    return [vocabulary[token] for token in ("<|im_end|>", "<|end|>") if token in vocabulary]


def _quantised(tensors: dict[str, torch.Tensor], skipped: list[str]) -> dict[str, torch.Tensor]:
    """Linear layers as bitsandbytes' Linear8bitLt saves them: weight int8, SCB float32 (row maxima), weight_format."""
    stored = {}
    for name, value in tensors.items():
        linear = name.endswith(".weight") and value.ndim == 2 and "embeddings" not in name
        if not linear or any(part in name.split(".") for part in skipped):
            stored[name] = value
            continue
        stem = name.removesuffix("weight")
        scale = value.float().abs().amax(1)
        stored[name] = (value.float() * (127 / scale).unsqueeze(1)).round().to(torch.int8)
        stored[f"{stem}SCB"] = scale
        stored[f"{stem}weight_format"] = torch.tensor(0, dtype=torch.uint8)
    return stored


def _write_clip(config: dict[str, Any], folder: Path, seed: int, dtype: torch.dtype) -> None:
    """A whole CLIP, text half included, as openai/clip-vit-large-patch14-336 is."""
    torch.manual_seed(seed)
    small = {"hidden_size": 2 * HEAD_DIM, "intermediate_size": 4 * HEAD_DIM, "num_attention_heads": 2}
    vision = {**config["vision_config"], **small, "num_hidden_layers": LAYERS + 1, "image_size": SIDE}
    text = {**config["text_config"], **small, "num_hidden_layers": 1, "vocab_size": 32, "eos_token_id": 31}
    both = {"text_config": text, "vision_config": vision, "projection_dim": HEAD_DIM}
    model = CLIPModel(CLIPConfig(**both))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    model.load_state_dict(random_tensors(shapes, seed, torch.float32), strict=False)
    model.to(dtype).save_pretrained(folder)
    write_json(folder / "preprocessor_config.json", {**_PICTURES, "image_processor_type": "CLIPImageProcessor"})


def _conversations(first: bool) -> str:
    """conversation.py: the three styles in use, of InternVL 1.5 (``first``) or 2."""
    parts = ["from fastchat.conversation import Conversation, SeparatorStyle, register_conv_template\n"]
    for name, (system, user, assistant, separator, ends) in _STYLES.items():
        message = _SYSTEM_15[name] if first else _SYSTEM_2
        parts.append(
            f"register_conv_template(\n    Conversation(\n        name='{name}',\n"
            f"        system_template='{system}{{system_message}}',\n        system_message='{message}',\n"
            f"        roles=('{user}', '{assistant}'),\n        sep_style=SeparatorStyle.MPT,\n"
            f"        sep='{separator}',\n        stop_token_ids={ends},\n    )\n)\n"
        )
    return "\n".join([*parts, _REMOTE_CODE])


def _name_dtype(config: dict[str, Any], dtype: torch.dtype) -> None:
    for part in (config, config["llm_config"], config["vision_config"]):
        part["torch_dtype"] = str(dtype).removeprefix("torch.")


def write_json(file: Path, content: Any) -> None:
    """Write indented JSON."""
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
