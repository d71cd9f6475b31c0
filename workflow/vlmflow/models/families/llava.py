"""LLaVA 1.5 (Liu et al. 2023): every picture is padded or resized to one square, and has one length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoProcessor, LlavaProcessor

MODEL_TYPE = "llava"
PROCESSOR: type = LlavaProcessor


def load_processor(folder: Path) -> LlavaProcessor:
    """The processor of a model directory; pictures go through Pillow, so that all machines see the same."""
    processor: LlavaProcessor = AutoProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    return processor


def tile_tokens(processor: Any) -> int:
    """Tokens of a picture: its patches, less the class token where the projector does not get it."""
    picture = processor.image_processor
    side = picture.crop_size if picture.do_center_crop else picture.size
    patches = (side["height"] // processor.patch_size) * (side["width"] // processor.patch_size)
    dropped = processor.vision_feature_select_strategy == "default"
    return int(patches + processor.num_additional_image_tokens - dropped)


def tiles(processor: Any, sizes: Sequence[tuple[int, int]], max_tiles: int | None) -> list[int]:
    """One for each picture."""
    del processor, max_tiles
    return [1] * len(sizes)


def picture_limit(processor: Any, pictures: int, max_tiles: int | None) -> int:
    """Pictures are never cut."""
    del processor, pictures, max_tiles
    return 1


def pixel_values(processor: Any, pictures: Sequence[Image.Image], max_tiles: int | None) -> torch.Tensor:
    """(pictures, 3, height, width), resized and normalised as the model directory says."""
    del max_tiles
    values: torch.Tensor = processor.image_processor(list(pictures), return_tensors="pt")["pixel_values"]
    return values


def features(model: Any, pixel_values: torch.Tensor) -> torch.Tensor:
    """(pictures, patches, width) of the layer, or side by side the layers, that the projector reads.

    Later layers are not computed. Under autocast in its format, which the projector's first layer takes anyway.
    """
    config, tower = model.config, model.model.vision_tower
    asked = config.vision_feature_layer
    total = config.vision_config.num_hidden_layers + 1  # the embeddings count as the first hidden state
    chosen = [layer % total for layer in ([asked] if isinstance(asked, int) else asked)]
    states = _hidden_states(tower, config.vision_config.model_type, pixel_values, max(chosen))
    patches = [states[layer] for layer in chosen]
    if config.vision_feature_select_strategy == "default":
        patches = [state[:, 1:] for state in patches]  # less the class token
    joined = patches[0] if isinstance(asked, int) else torch.cat(patches, dim=-1)
    kind = joined.device.type
    return joined.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else joined


def _hidden_states(tower: Any, kind: str, pixel_values: torch.Tensor, layers: int) -> list[torch.Tensor]:
    """(pictures, tokens, width) each: the embeddings and the outputs of the first ``layers`` layers of the tower."""
    core = getattr(tower, "vision_model", tower)  # some releases of transformers have this one more module
    hidden = core.embeddings(pixel_values)
    if kind == "clip_vision_model":
        hidden = core.pre_layrnorm(hidden)  # transformers' spelling
    blocks, mask = (core.encoder.layer, ()) if kind == "dinov2" else (core.encoder.layers, (None,))
    states = [hidden]
    for block in blocks[:layers]:
        states.append(block(states[-1], *mask))
    return states


def project(model: Any, features: torch.Tensor) -> torch.Tensor:
    """(pictures x patches, hidden)."""
    embeddings: torch.Tensor = model.model.multi_modal_projector(features)
    return embeddings.flatten(0, 1)
