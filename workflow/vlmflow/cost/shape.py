"""The dimensions of a model, read from its config.json: what parameters, FLOPs and memory follow from. No torch.

Sources: the modules of transformers' modeling_{llama,mistral,qwen2,qwen3,phi3}.py, modeling_{clip,siglip,dinov2}.py,
modeling_internvl.py and modeling_llava.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from vlmflow.cost.blocks import Blocks, Language, Linear, Linears, Projector, Tower
from vlmflow.errors import UserError


@dataclass(frozen=True)
class Shape:
    """A vision-language model by its dimensions."""

    language: Language
    tower: Tower
    projector: Projector
    tile_tokens: int
    """Tokens of the language model that stand for a tile."""
    cuts_tiles: bool
    """Whether a picture becomes several tiles (InternVL)."""

    @property
    def parameters(self) -> int:
        return self.language.parameters + self.tower.parameters + self.projector.parameters

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """From the content of the config.json of a model directory (transformers' own LLaVA or InternVL).

        Raises :class:`UserError` for a kind of network that is not known here, or a key that is missing.
        """
        try:
            text, vision = config["text_config"], config["vision_config"]
            language = _language(text)
            tower = _known(_TOWERS, vision["model_type"])(vision)
            return _known(_FAMILIES, config["model_type"])(config, language, tower)
        except KeyError as error:
            raise UserError(f"broken configuration: there is no {error}", file="config.json") from None


def _known(makers: Mapping[str, Any], kind: str) -> Any:
    if kind not in makers:
        raise UserError(f"no dimensions are known of a network of type '{kind}'", f"there is {', '.join(makers)}")
    return makers[kind]


def _language(text: Mapping[str, Any]) -> Language:
    kind, hidden, ffn = text["model_type"], text["hidden_size"], text["intermediate_size"]
    _known(dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "phi3")), kind)
    head = text.get("head_dim") or hidden // text["num_attention_heads"]
    query, key_value = text["num_attention_heads"] * head, (text.get("num_key_value_heads") or 0) * head
    key_value = key_value or query
    biased = kind in ("llama", "qwen3") and bool(text.get("attention_bias"))
    mlp_bias = kind == "llama" and bool(text.get("mlp_bias"))
    qkv_bias = biased or kind == "qwen2"
    before: Linears = tuple(Linear(hidden, width, qkv_bias) for width in (query, key_value, key_value))
    gate_up: Linears = (Linear(hidden, ffn, mlp_bias),) * 2
    if kind == "phi3":
        before, gate_up = (Linear(hidden, query + 2 * key_value),), (Linear(hidden, 2 * ffn),)
    blocks = Blocks(
        layers=text["num_hidden_layers"],
        hidden=hidden,
        query=query,
        key_value=key_value,
        ffn=ffn,
        before_attention=before,
        after_attention=(Linear(query, hidden, biased), *gate_up, Linear(ffn, hidden, mlp_bias)),
        vectors=2 * hidden + (2 * head if kind == "qwen3" else 0),
    )
    return Language(blocks, text["vocab_size"], bool(text.get("tie_word_embeddings", False)))


def _tower(vision: Mapping[str, Any], qkv_bias: bool, vectors: int, ffn: Linears, width: int) -> Blocks:
    hidden = vision["hidden_size"]
    return Blocks(
        layers=vision["num_hidden_layers"],
        hidden=hidden,
        query=hidden,
        key_value=hidden,
        ffn=width,
        before_attention=(Linear(hidden, hidden, qkv_bias),) * 3,
        after_attention=(Linear(hidden, hidden, True), *ffn),
        vectors=vectors,
    )


def _two_layers(hidden: int, ffn: int) -> Linears:
    return Linear(hidden, ffn, True), Linear(ffn, hidden, True)


def _patches(vision: Mapping[str, Any]) -> tuple[int, int]:
    """Patches of a tile, and numbers in one patch."""
    (height, width), (rows, columns) = _sides(vision["image_size"]), _sides(vision["patch_size"])
    return (height // rows) * (width // columns), vision.get("num_channels", 3) * rows * columns


def _sides(size: int | list[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _clip(vision: Mapping[str, Any]) -> Tower:
    hidden, ffn = vision["hidden_size"], vision["intermediate_size"]
    patches, values = _patches(vision)
    blocks = _tower(vision, True, 4 * hidden, _two_layers(hidden, ffn), ffn)
    read = hidden * (values + patches + 1 + 1 + 2)  # with the norm before the first layer
    return Tower(blocks, blocks.layers, patches, 1, values, read, 2 * hidden)


def _siglip(vision: Mapping[str, Any]) -> Tower:
    hidden, ffn = vision["hidden_size"], vision["intermediate_size"]
    (patches, values), unread = _patches(vision), 2 * hidden
    blocks = _tower(vision, True, 4 * hidden, _two_layers(hidden, ffn), ffn)
    if vision.get("vision_use_head", True):  # probe, attention, norm and two layers, which LLaVA does not read
        linears = (Linear(hidden, 3 * hidden, True), Linear(hidden, hidden, True), *_two_layers(hidden, ffn))
        unread += hidden + 2 * hidden + sum(linear.parameters for linear in linears)
    return Tower(blocks, blocks.layers, patches, 0, values, hidden * (values + 1 + patches), unread)


def _dinov2(vision: Mapping[str, Any]) -> Tower:
    hidden, ffn = vision["hidden_size"], int(vision["hidden_size"] * vision["mlp_ratio"])
    linears = _two_layers(hidden, ffn)
    if vision["use_swiglu_ffn"]:
        ffn = (int(ffn * 2 / 3) + 7) // 8 * 8
        linears = (Linear(hidden, ffn, True), *_two_layers(hidden, ffn))
    (patches, values), norms_and_scales = _patches(vision), 6 * hidden
    blocks = _tower(vision, vision["qkv_bias"], norms_and_scales, linears, ffn)
    unread = hidden * (2 + bool(vision["use_mask_token"]))
    return Tower(blocks, blocks.layers, patches, 1, values, hidden * (values + 1 + patches + 1 + 1), unread)


def _intern_vit(vision: Mapping[str, Any]) -> Tower:
    hidden, ffn = vision["hidden_size"], vision["intermediate_size"]
    patches, values = _patches(vision)
    norms = 2 * hidden * (2 if vision["norm_type"] == "layer_norm" else 1)
    vectors = norms + 2 * hidden + (2 * hidden if vision["use_qk_norm"] else 0)
    blocks = _tower(vision, vision["attention_bias"], vectors, _two_layers(hidden, ffn), ffn)
    positions = (patches + 1) * bool(vision.get("use_absolute_position_embeddings", True))
    final_norm = 0 if vision.get("use_mean_pooling", True) else 2
    read = hidden * (values + 1 + positions + 1 + final_norm)
    return Tower(blocks, blocks.layers, patches, 1, values, read, hidden * bool(vision.get("use_mask_token", False)))


def _llava(config: Mapping[str, Any], language: Language, tower: Tower) -> Shape:
    asked, hidden = config["vision_feature_layer"], language.blocks.hidden
    states = [asked] if isinstance(asked, int) else asked
    last = max(state % (tower.blocks.layers + 1) for state in states)  # the first state is the embeddings
    width = tower.blocks.hidden * len(states)
    bias = config.get("multimodal_projector_bias", True)
    projector = Projector((Linear(width, hidden, bias), Linear(hidden, hidden, bias)), norm=0)
    whole = config.get("vision_feature_select_strategy", "default") == "full"
    tokens = tower.patches + whole * tower.class_tokens
    return Shape(language, replace(tower, read_layers=last), projector, tokens, cuts_tiles=False)


def _internvl(config: Mapping[str, Any], language: Language, tower: Tower) -> Shape:
    shuffled = int(1 / config["downsample_ratio"]) ** 2
    width, hidden = tower.blocks.hidden * shuffled, language.blocks.hidden
    projector = Projector((Linear(width, hidden, True), Linear(hidden, hidden, True)), norm=2 * width)
    return Shape(language, tower, projector, tower.patches // shuffled, cuts_tiles=True)


_TOWERS: dict[str, Callable[[Mapping[str, Any]], Tower]] = {
    "clip_vision_model": _clip,
    "siglip_vision_model": _siglip,
    "dinov2": _dinov2,
    "internvl_vision": _intern_vit,
}
_FAMILIES: dict[str, Callable[[Mapping[str, Any], Language, Tower], Shape]] = {"llava": _llava, "internvl": _internvl}
