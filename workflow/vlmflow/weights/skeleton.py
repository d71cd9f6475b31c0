"""What a model directory must contain, by its configuration alone, and the two names of every tensor."""

from __future__ import annotations

import logging
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

_PREFIXES = (
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
)
"""Prefix of a module in memory, and in the files (what transformers writes and LMDeploy reads)."""

logging.getLogger("transformers").setLevel(logging.ERROR)


def disk_name(name: str) -> str:
    """The name in a weight file of the tensor that the module tree calls ``name``."""
    for module, disk in _PREFIXES:
        if name.startswith(module):
            return disk + name.removeprefix(module)
    raise ValueError(f"{name} is in no part of a vision-language model")


def module_name(name: str) -> str:
    """The name in the module tree of the tensor that a weight file calls ``name``."""
    for module, disk in _PREFIXES:
        if name.startswith(disk):
            return module + name.removeprefix(disk)
    raise ValueError(f"{name} is in no part of a vision-language model")


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
    return {disk_name(name): shape for name, shape in names.items()}
