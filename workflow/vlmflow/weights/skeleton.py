"""What a model directory must contain, by its configuration alone, and the two names of every tensor."""

from __future__ import annotations

import logging
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from vlmflow.errors import UserError

_PREFIXES = (
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
)
"""Prefix of a module in memory, and in the files (what transformers writes and LMDeploy reads)."""
_VISION = "model.vision_tower."
_INNER = "vision_model."
NESTED = ("clip_vision_model", "siglip_vision_model")
"""Towers whose tensors are published below ``vision_tower.vision_model``: LMDeploy finds them nowhere else."""

DINOV2_NAMES = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
}
"""Module in a layer of DINOv2 in recent releases of transformers -> its published name, which all releases load."""

logging.getLogger("transformers").setLevel(logging.ERROR)


def disk_name(name: str, config: Any) -> str:
    """The name in a weight file of the tensor or module that the module tree calls ``name``.

    ``config`` is the model's. Some releases of transformers have one more module in a vision tower than others; both
    spellings give the same name here.
    """
    if name.startswith(_VISION):
        inner, tower = name.removeprefix(_VISION).removeprefix(_INNER), config.vision_config.model_type
        for module, published in DINOV2_NAMES.items() if tower == "dinov2" else ():
            inner = inner.replace(f".{module}.", f".{published}.")
        return "vision_tower." + _INNER * (tower in NESTED) + inner
    for module, disk in _PREFIXES:
        if name.startswith(module):
            return disk + name.removeprefix(module)
    raise UserError(f"{name} is in no part of a vision-language model", "is it of another kind of model?")


def skeleton(config: Any) -> Any:
    """The model of a configuration on the meta device: names and shapes without values."""
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)


def expected_tensors(config: Any) -> dict[str, tuple[int, ...]]:
    """Name in the files -> shape of every tensor that is stored; a tied output matrix is not."""
    model = skeleton(config)
    names = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        names.pop("lm_head.weight", None)
    return {disk_name(name, config): shape for name, shape in names.items()}


def linear_layers(config: Any) -> list[tuple[str, torch.nn.Linear]]:
    """Name in the module tree and layer, without values, of every linear layer."""
    return [(name, module) for name, module in skeleton(config).named_modules() if isinstance(module, torch.nn.Linear)]


def language_linears(config: Any) -> list[str]:
    """Names in the files of the weights of the language model's linear layers, its output matrix excepted."""
    names = (name for name, _ in linear_layers(config))
    return [disk_name(f"{name}.weight", config) for name in names if name.startswith("model.language_model.")]
