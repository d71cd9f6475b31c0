"""The trained parts that a LLaVA is assembled from: language model with tokenizer, and vision tower, unread."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, Dinov2Config, Dinov2Model
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from vlmflow.convert import internlm2
from vlmflow.convert.tokenizer import load_tokenizer
from vlmflow.errors import UserError
from vlmflow.files import read_json
from vlmflow.models.dinov2 import load_dinov2_onnx, resize_positions
from vlmflow.models.gguf import load_gguf
from vlmflow.models.llava_directory import HEAD, TABLE, source_of
from vlmflow.models.template import template_names
from vlmflow.weights.checkpoint import Checkpoint
from vlmflow.weights.kinds import Span, State, Tensors, span_of
from vlmflow.weights.mapping import Operation, Rule
from vlmflow.weights.skeleton import DINOV2_NAMES

TOWERS = ("clip_vision_model", "siglip_vision_model", "dinov2")
_NESTED = ("clip_vision_model", "siglip_vision_model")
_OTHER_HALF = ("text_model.", "text_projection", "visual_projection", "logit_scale", "logit_bias")
"""Tensors of CLIP and SigLIP that see no picture."""
_BUFFERS = ("position_ids", "rotary_emb.inv_freq")
"""Constants that old releases stored."""
_POSITIONS = "embeddings.position_embeddings"
_VICUNA_WORDS = 32_000
_SAME = Rule(("**",), ("**",))


class Language(NamedTuple):
    """A causal language model."""

    config: Any
    """As transformers computes it; InternLM2 is a Llama."""
    tensors: Tensors
    rules: list[Rule]
    """From its tensors to those of transformers' class (``model.embed_tokens.weight``)."""
    tokenizer: Any
    generation: dict[str, Any]
    """Content of generation_config.json."""
    model_type: str
    """In its own config.json."""


class Tower(NamedTuple):
    """A vision tower."""

    config: Any
    tensors: Tensors
    rules: list[Rule]
    """From its tensors to those in a model directory (``vision_tower.``)."""


class Chosen:
    """Some of the tensors of another source."""

    def __init__(self, tensors: Tensors, wanted: Callable[[str], bool]) -> None:
        self._tensors = tensors
        self.kinds = {name: kind for name, kind in tensors.kinds.items() if wanted(name)}

    def read(self, name: str) -> torch.Tensor:
        """The tensor, from the source."""
        return self._tensors.read(name)

    def span(self, name: str) -> Span | None:
        """Where its bytes lie, if the source knows."""
        return span_of(self._tensors, name)


def language_part(path: Path) -> Language:
    """The language model of a GGUF file (held in memory), or of a folder as it is published."""
    if path.suffix == ".gguf":
        model, tokenizer = load_gguf(path)
        state = model.state_dict()
        if model.config.tie_word_embeddings:
            state.pop(HEAD, None)
        generation = model.generation_config.to_dict()
        cleaned(model.config).architectures = [type(model).__name__]
        return Language(model.config, State(state), [_SAME], tokenizer, generation, model.config.model_type)
    content = config_of(path)
    model_type = str(content.get("model_type"))
    config, rules = language_config(path, content)
    tensors: Tensors = without_buffers(Checkpoint(path))
    head, table = source_of(rules, HEAD), source_of(rules, TABLE)
    if config.tie_word_embeddings and head in tensors.kinds:
        if torch.equal(tensors.read(head), tensors.read(table)):
            tensors = Chosen(tensors, lambda name: name != head)
        else:  # stored apart, so it counts whatever the configuration says
            config.tie_word_embeddings = False
    return Language(config, tensors, rules, load_tokenizer(path), generation_of(path), model_type)


def language_config(path: Path, content: dict[str, Any]) -> tuple[Any, list[Rule]]:
    """Configuration and rules of the language model whose config.json in ``path`` holds ``content``."""
    if content.get("model_type") == "internlm2":
        config: Any = internlm2.llama_config(content)
        rules = internlm2.rules_of(content)
    else:
        config, rules = local_config(path), [_SAME]
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UserError(f"wrong part: a model of type '{config.model_type}' is no language model", file=path)
    config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]]
    return cleaned(config), rules


def vision_part(path: Path, image_size: int | None) -> Tower:
    """The tower of a DINOv2 ONNX export (held in memory), or of a CLIP, SigLIP or DINOv2 folder."""
    if path.suffix == ".onnx":
        model = load_dinov2_onnx(path)
        config, tensors = model.config, State(model.state_dict())
        return Tower(config, tensors, [*_resized(config, image_size), *tower_rules(config)])
    config = vision_config(path)
    stored = without_buffers(Checkpoint(path))
    seeing = Chosen(stored, lambda name: not name.startswith(_OTHER_HALF))
    return Tower(config, seeing, [*_resized(config, image_size), *tower_rules(config)])


def vision_config(path: Path) -> Any:
    """The configuration of the vision half of a folder; :class:`UserError` for a tower that is not known."""
    config_of(path)
    config = local_config(path)
    config = getattr(config, "vision_config", config)
    if config.model_type not in TOWERS:
        raise UserError(f"no vision tower of type '{config.model_type}'", f"there is {', '.join(TOWERS)}", file=path)
    return cleaned(config)


def tower_rules(config: Any) -> list[Rule]:
    """From the names in a tower's own folder to those in a model directory."""
    if config.model_type in _NESTED:
        target = "vision_tower.vision_model.**"
        return [Rule(("vision_model.**",), (target,)), Rule(("**",), (target,))]
    layers = [
        Rule((f"encoder.layer.*.{module}.{kind}",), (f"vision_tower.encoder.layer.*.{published}.{kind}",))
        for module, published in DINOV2_NAMES.items()
        for kind in ("weight", "bias")
    ]
    return [*layers, Rule(("**",), ("vision_tower.**",))]


def own_template(model_type: str, config: Any, tokenizer: Any) -> str:
    """The prompt template that a language model was trained with; :class:`UserError` naming all if that is unclear."""
    vocabulary = tokenizer.get_vocab()
    names = {"internlm2": "internlm2-chat", "qwen2": "chatml", "phi3": "phi3"}
    if model_type in names:
        return names[model_type]
    if model_type == "llama" and "<|start_header_id|>" in vocabulary:
        return "llama3"
    if model_type == "llama" and _VICUNA_WORDS in (config.vocab_size, tokenizer.vocab_size):
        return "vicuna"
    raise UserError(
        f"unknown prompt template: a '{model_type}' with {config.vocab_size} tokens can have been trained with any",
        f"name the `template`: {', '.join(template_names())}",
        field="template",
    )


def config_of(path: Path) -> dict[str, Any]:
    """The content of a folder's config.json."""
    if not (path / "config.json").is_file():
        raise UserError("no Hugging Face model directory (config.json is missing)", file=path)
    return dict(read_json(path / "config.json"))


def local_config(path: Path) -> Any:
    """transformers' configuration of a folder; no code of its own is run."""
    try:
        return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, TypeError) as error:
        reason = f"transformers has no model of type '{config_of(path).get('model_type')}'"
        raise UserError(reason, str(error).splitlines()[0][:200], file=path) from None


def generation_of(path: Path) -> dict[str, Any]:
    """The content of a folder's generation_config.json, empty if there is none."""
    file = path / "generation_config.json"
    return dict(read_json(file)) if file.is_file() else {}


def without_buffers(tensors: Tensors) -> Chosen:
    """What of the tensors is trained."""
    return Chosen(tensors, lambda name: not name.endswith(_BUFFERS))


def cleaned(config: Any) -> Any:
    """The configuration without the place that it was read from and the code that came with it."""
    config.name_or_path = ""
    for key in ("auto_map", "_attn_implementation_autoset"):
        if hasattr(config, key):
            delattr(config, key)
    return config


def _resized(config: Any, image_size: int | None) -> list[Rule]:
    """The rule that interpolates the position embedding to another side, which ``config`` then has."""
    if image_size is None or image_size == config.image_size:
        return []
    if image_size % config.patch_size:
        raise UserError(f"image_size {image_size} is no multiple of the tower's patch size {config.patch_size}")
    if config.model_type != "dinov2":
        raise UserError("image_size can be changed for DINOv2 towers only", f"use {config.image_size}")
    kept = {key: getattr(config, key) for key in ("hidden_size", "num_channels", "patch_size", "image_size")}
    embeddings = Dinov2Model(Dinov2Config(**kept, num_hidden_layers=0)).embeddings
    config.image_size = image_size
    patches = (image_size // config.patch_size) ** 2

    def resize(table: torch.Tensor) -> tuple[torch.Tensor]:
        if table.is_meta:
            return (torch.empty(1, 1 + patches, table.shape[-1], dtype=table.dtype, device="meta"),)
        embeddings.position_embeddings = torch.nn.Parameter(table.float())
        made = SimpleNamespace(embeddings=embeddings, config=SimpleNamespace(hidden_size=table.shape[-1]))
        resize_positions(made, image_size)
        return (embeddings.position_embeddings.detach().to(table.dtype),)

    return [Rule((_POSITIONS,), (f"vision_tower.{_POSITIONS}",), Operation(resize, resize))]
