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


def pixel_values(processor: Any, pictures: Sequence[Image.Image], max_tiles: int | None) -> torch.Tensor:
    """(pictures, 3, height, width), resized and normalised as the model directory says."""
    del max_tiles
    values: torch.Tensor = processor.image_processor(list(pictures), return_tensors="pt")["pixel_values"]
    return values
