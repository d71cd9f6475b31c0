"""The vision tower that a LLaVA is assembled from, unread."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from transformers import AutoModel, Dinov2Config, Dinov2Model

from vlmflow.convert.layout import checking
from vlmflow.errors import UserError
from vlmflow.files import read_json
from vlmflow.models.dinov2 import load_dinov2_onnx, resize_positions
from vlmflow.models.parts import Chosen, cleaned, config_of, local_config, without_buffers
from vlmflow.weights.checkpoint import Checkpoint
from vlmflow.weights.kinds import State, Tensors
from vlmflow.weights.mapping import Operation, Rule
from vlmflow.weights.skeleton import DINOV2_NAMES, NESTED

TOWERS = ("clip_vision_model", "siglip_vision_model", "dinov2")
_OTHER_HALF = ("text_model.", "text_projection", "visual_projection", "logit_scale", "logit_bias")
"""Tensors of CLIP and SigLIP that see no picture."""
_STATISTICS = {"image_mean", "image_std"}
_SETTINGS = ("image_mean", "image_std", "resample")
_POSITIONS = "embeddings.position_embeddings"


class Tower(NamedTuple):
    """A vision tower."""

    config: Any
    tensors: Tensors
    rules: list[Rule]
    """From its tensors to those in a model directory (``vision_tower.``)."""
    pictures: dict[str, Any]
    """Its own mean, standard deviation and resampling of pictures; empty if its folder names none."""


def vision_part(path: Path, image_size: int | None) -> Tower:
    """The tower of a DINOv2 ONNX export (held in memory), or of a CLIP, SigLIP or DINOv2 folder."""
    if path.suffix == ".onnx":
        model = load_dinov2_onnx(path)
        config, tensors = model.config, State(model.state_dict())
        return Tower(config, tensors, [*_resized(config, image_size), *tower_rules(config)], {})
    config, pictures = vision_config(path), picture_settings(path)
    stored = without_buffers(Checkpoint(path))
    seeing = Chosen(stored, lambda name: not name.startswith(_OTHER_HALF))
    return Tower(config, seeing, [*_resized(config, image_size), *tower_rules(config)], pictures)


def picture_settings(path: Path) -> dict[str, Any]:
    """Mean, standard deviation and resampling that the preprocessor_config.json of a tower's folder names."""
    file = path / "preprocessor_config.json"
    content = read_json(file) if file.is_file() else {}
    with checking("broken settings of pictures", file):
        found = {key: content[key] for key in _SETTINGS if content.get(key) is not None}
        for key in _STATISTICS & found.keys():
            if len(found[key]) != 3 or not all(math.isfinite(value) for value in found[key]):
                raise ValueError(f"{key} is {found[key]}, not three numbers")
        if min(found.get("image_std", [1])) <= 0 or found.get("resample", 3) not in range(6):
            raise ValueError(f"image_std {found.get('image_std')}, resample {found.get('resample')}")
    return found


def vision_config(path: Path) -> Any:
    """The configuration of the vision half of a folder; :class:`UserError` for a tower that is not known."""
    config_of(path)
    config = local_config(path)
    config = getattr(config, "vision_config", config)
    if config.model_type not in TOWERS:
        raise UserError(f"no vision tower of type '{config.model_type}'", f"there is {', '.join(TOWERS)}", file=path)
    with checking("broken configuration", path / "config.json"), torch.device("meta"):
        AutoModel.from_config(config)
    return cleaned(config)


def tower_rules(config: Any) -> list[Rule]:
    """From the names in a tower's own folder to those in a model directory."""
    if config.model_type in NESTED:
        target = "vision_tower.vision_model.**"
        return [Rule(("vision_model.**",), (target,)), Rule(("**",), (target,))]
    layers = [
        Rule((f"encoder.layer.*.{module}.{kind}",), (f"vision_tower.encoder.layer.*.{published}.{kind}",))
        for module, published in DINOV2_NAMES.items()
        for kind in ("weight", "bias")
    ]
    return [*layers, Rule(("**",), ("vision_tower.**",))]


def _resized(config: Any, image_size: int | None) -> list[Rule]:
    """The rule that interpolates the position embedding to another side, which ``config`` then has."""
    if image_size is None or image_size == config.image_size:
        return []
    if image_size < config.patch_size or image_size % config.patch_size:
        raise UserError(
            f"image_size {image_size} is no multiple of the tower's patch size {config.patch_size}", field="image_size"
        )
    if config.model_type != "dinov2":
        reason = "image_size can be changed for DINOv2 towers only"
        raise UserError(reason, f"use {config.image_size}", field="image_size")
    kept = {key: getattr(config, key) for key in ("hidden_size", "num_channels", "patch_size", "image_size")}
    embeddings = Dinov2Model(Dinov2Config(**kept, num_hidden_layers=0)).embeddings
    config.image_size = image_size
    patches = (image_size // config.patch_size) ** 2

    def resize(table: torch.Tensor) -> tuple[torch.Tensor]:
        if table.is_meta:
            return (torch.empty(1, 1 + patches, table.shape[-1], dtype=table.dtype, device="meta"),)
        embeddings.position_embeddings = torch.nn.Parameter(table.float())
        made = SimpleNamespace(embeddings=embeddings, config=SimpleNamespace(**kept))
        resize_positions(made, image_size)
        return (embeddings.position_embeddings.detach().to(table.dtype),)

    return [Rule((_POSITIONS,), (f"vision_tower.{_POSITIONS}",), Operation(resize, resize))]
