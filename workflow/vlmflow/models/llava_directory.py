"""What every LLaVA model directory gets, built from parts or converted: `<image>`, configuration, processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, LlavaConfig, LlavaProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from vlmflow.convert.layout import checking
from vlmflow.errors import UserError
from vlmflow.models.directory import write_config
from vlmflow.models.template import PLACEHOLDER, chat_template, check_template
from vlmflow.models.template_tokenizer import end_of_turn, fit_tokenizer
from vlmflow.weights.mapping import Operation, Rule

TABLE = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
_MULTIPLE = 64  # rows of an extended vocabulary
_MOST_ADDED = 64  # tokens that people add to a vocabulary; published models with `<image>` add fewer than ten
_STATISTICS = {
    "clip_vision_model": (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
    "siglip_vision_model": ([0.5] * 3, [0.5] * 3),
    "dinov2": (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
}
_CLASSLESS = ("siglip_vision_model",)
"""Towers without a class token."""
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
_BEAMS = ("length_penalty", "early_stopping")


def add_placeholder(tokenizer: Any, template: str) -> None:
    """Make `<image>` a token, give the tokenizer its prompt template and check that they fit."""
    tokenizer.add_tokens([PLACEHOLDER], special_tokens=True)
    tokenizer.chat_template = chat_template(template)
    fit_tokenizer(tokenizer)
    check_template(tokenizer)


def padded_rows(tokenizer: Any, rows: int) -> int:
    """Rows of the vocabulary tables: as many as there are, or a multiple of 64 if the tokenizer needs more.

    Raises :class:`UserError` if so many tokens have no row that the tokenizer must be another model's.
    """
    if len(tokenizer) - rows > _MOST_ADDED:
        raise UserError(
            f"wrong tokenizer: it has {len(tokenizer)} tokens, the embedding table {rows} rows",
            "tokenizer and weights are of different models",
        )
    return rows if len(tokenizer) <= rows else -(-len(tokenizer) // _MULTIPLE) * _MULTIPLE


def extended(rules: Sequence[Rule], rows: int, more: int, dtype: torch.dtype | None = None) -> list[Rule]:
    """The rules with vocabulary tables of ``more`` rows instead of ``rows``; the inverse drops what was added.

    ``rules`` lead to the names of a causal language model. The new rows get the mean of the others: `<image>`'s is
    never read, picture features take its place, and none of the rows can win as an output. ``dtype``: number format of
    the result, in which the mean is rounded once; None keeps it.
    """
    if rows == more:
        return list(rules)
    operation = _extension(rows, more, dtype)
    return [*(Rule((source_of(rules, name),), (name,), operation) for name in (TABLE, HEAD)), *rules]


def source_of(rules: Sequence[Rule], target: str) -> str:
    """The name of the tensor that one of the rules makes ``target`` of; the same name if none does."""
    return next((rule.sources[0] for rule in rules if rule.targets == (target,)), target)


def _extension(rows: int, more: int, dtype: torch.dtype | None) -> Operation:
    def extend(table: torch.Tensor) -> tuple[torch.Tensor]:
        made = table.to(dtype or table.dtype)
        mean = table.mean(0, keepdim=True, dtype=torch.float32).to(made.dtype)
        return (torch.cat([made, mean.expand(more - rows, -1)]),)

    def cut(table: torch.Tensor) -> tuple[torch.Tensor]:
        return (table[:rows].contiguous(),)

    return Operation(extend, cut)


def prefixed(rules: Sequence[Rule], source: str, target: str) -> list[Rule]:
    """The rules with a prefix before the names on either side."""
    return [
        Rule(
            tuple(source + name for name in rule.sources), tuple(target + name for name in rule.targets), rule.operation
        )
        for rule in rules
    ]


def llava_config(
    text: Any, vision: Any, tokenizer: Any, feature_layer: int, strategy: str | None = None
) -> LlavaConfig:
    """The configuration around those of the language model, which gets the tokenizer's size, and the tower.

    ``strategy``: ``default`` drops the class token, ``full`` keeps all; None what fits the tower. The padding token
    at the top is `<image>`: LMDeploy marks the places of pictures with it. Raises :class:`UserError` for a
    ``feature_layer`` that the tower does not have.
    """
    check_layer(feature_layer, vision)
    classless = vision.model_type in _CLASSLESS
    text.vocab_size = padded_rows(tokenizer, text.vocab_size)
    token = tokenizer.convert_tokens_to_ids(PLACEHOLDER)
    config = LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=token,
        pad_token_id=token,
        vision_feature_layer=feature_layer,
        vision_feature_select_strategy=strategy or ("full" if classless else "default"),
        tie_word_embeddings=text.tie_word_embeddings,
    )
    config.architectures = ["LlavaForConditionalGeneration"]
    return config


def check_layer(layer: Any, vision: Any, field: str = "feature_layer", file: Path | None = None) -> None:
    """Raise :class:`UserError` unless ``layer`` is a hidden state of a tower, counted from its end as LMDeploy does."""
    layers = vision.num_hidden_layers
    if not isinstance(layer, int) or not -layers - 1 <= layer <= -1:
        raise UserError(
            f"no hidden state {layer} in a vision tower of {layers} layers",
            f"from {-layers - 1} (its input) to -1 (after the last layer)",
            file=file,
            field=field,
        )


def write_small_files(
    config: LlavaConfig,
    tokenizer: Any,
    generation: dict[str, Any],
    folder: Path,
    *,
    pictures: Mapping[str, Any] | None = None,
    pad: bool = True,
) -> None:
    """Write config.json, generation_config.json, processor and tokenizer.

    ``pictures``: mean, standard deviation and resampling that the tower was trained with, where it does not have those
    of its kind. ``pad``: a picture is padded to a square, as LLaVA 1.5 trains, so that nothing is cut off; otherwise
    its shorter side is resized and the middle cut out, as CLIP trains.
    """
    write_config(config, folder)
    write_generation_config(tokenizer, generation, folder)
    side, kind = config.vision_config.image_size, config.vision_config.model_type
    square, (mean, std) = {"height": side, "width": side}, _STATISTICS[kind]
    shape: dict[str, Any] = (
        {"do_pad": True, "size": square, "do_center_crop": False}
        if pad
        else {"do_pad": False, "size": {"shortest_edge": side}, "do_center_crop": True, "crop_size": square}
    )
    LlavaProcessor(
        image_processor=LlavaImageProcessorPil(**shape, **{"image_mean": mean, "image_std": std, **(pictures or {})}),
        tokenizer=tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        chat_template=tokenizer.chat_template,
        num_additional_image_tokens=int(kind not in _CLASSLESS),  # the class token, which "default" drops again
    ).save_pretrained(folder)


def write_generation_config(tokenizer: Any, given: dict[str, Any], folder: Path) -> None:
    """Write generation_config.json: what was ``given``, and an answer ends with the template's end of turn.

    Settings for sampling or beams that are switched off are left out: transformers refuses to write them. Raises
    :class:`UserError` for others that it refuses.
    """
    beams = given.get("num_beams")
    unused = (*(() if given.get("do_sample") else _SAMPLING), *(_BEAMS if beams in (None, 1) else ()))
    kept = {key: value for key, value in given.items() if key not in ("transformers_version", *unused)}
    kept |= {"eos_token_id": end_of_turn(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    with checking("broken generation_config.json"):
        GenerationConfig(**kept).save_pretrained(folder)
