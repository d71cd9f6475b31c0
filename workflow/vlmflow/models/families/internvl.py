"""InternVL 1.5 and 2 (Chen et al. 2024): a picture becomes up to 12 tiles of 448 pixels and a thumbnail.

The rule of tiling is in vlmflow.models.tiling; resizing, cutting and normalising are transformers' GOT-OCR2 picture
processor's, which native InternVL models use.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoTokenizer
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.internvl.processing_internvl import InternVLProcessor
from transformers.processing_utils import ProcessorMixin

from vlmflow.files import read_json
from vlmflow.models.tiling import tile_count, tile_limit

MODEL_TYPE = "internvl"


class PictureProcessor(InternVLProcessor):
    """transformers' processor less its video part, which needs torchvision."""

    def __init__(self, image_processor: Any, tokenizer: Any, image_seq_length: int, chat_template: str | None) -> None:
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)
        self.image_seq_length = image_seq_length
        self.start_image_token, self.start_image_token_id = tokenizer.start_image_token, tokenizer.start_image_token_id
        self.end_image_token, self.end_image_token_id = tokenizer.end_image_token, tokenizer.end_image_token_id
        self.image_token, self.image_token_id = tokenizer.context_image_token, tokenizer.context_image_token_id
        self.video_token = tokenizer.video_token
        self.multimodal_pattern = re.compile(f"(?P<image>{re.escape(self.image_token)})")

    @classmethod
    def get_attributes(cls) -> list[str]:
        """The parts that it is made of."""
        return ["image_processor", "tokenizer"]


PROCESSOR: type = PictureProcessor


def load_processor(folder: Path) -> PictureProcessor:
    """The processor of a model directory; pictures go through Pillow, so that all machines see the same."""
    stored = read_json(folder / "processor_config.json")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    pictures = GotOcr2ImageProcessorPil(**stored["image_processor"])
    return PictureProcessor(pictures, tokenizer, stored["image_seq_length"], tokenizer.chat_template)


def tile_tokens(processor: Any) -> int:
    """Tokens of a tile after the pixel shuffle, 256 in all published models."""
    return int(processor.image_seq_length)


def tiles(processor: Any, sizes: Sequence[tuple[int, int]], max_tiles: int | None) -> list[int]:
    """Tiles of each picture, thumbnails included; the pictures share ``max_tiles``, the processor's limit if None."""
    cut, limit = processor.image_processor, picture_limit(processor, len(sizes), max_tiles)
    return [tile_count(width, height, limit, cut.min_patches, cut.size["height"]) for width, height in sizes]


def picture_limit(processor: Any, pictures: int, max_tiles: int | None) -> int:
    """The pictures share ``max_tiles``, the processor's limit if None; thumbnails do not count."""
    return tile_limit(processor.image_processor.max_patches if max_tiles is None else max_tiles, pictures)


def pixel_values(processor: Any, pictures: Sequence[Image.Image], max_tiles: int | None) -> torch.Tensor:
    """(tiles, 3, 448, 448): for each picture its tiles row by row, then its thumbnail if there are several."""
    cut, limit = processor.image_processor, picture_limit(processor, len(pictures), max_tiles)
    made = cut(list(pictures), crop_to_patches=True, max_patches=limit, return_tensors="pt")
    values: torch.Tensor = made["pixel_values"]
    return values


def features(model: Any, pixel_values: torch.Tensor) -> torch.Tensor:
    """(tiles, 256, 4 x tower's width): patches of the tower, four neighbours side by side (pixel shuffle)."""
    core, config = model.model, model.config
    last = config.vision_feature_layer == -1
    seen = core.vision_tower(pixel_values=pixel_values.to(core.dtype), output_hidden_states=not last)
    patches = seen.last_hidden_state if last else seen.hidden_states[config.vision_feature_layer]
    if config.vision_feature_select_strategy == "default":
        patches = patches[:, 1:]  # less the class token
    tiles, count, _ = patches.shape
    side = math.isqrt(count)
    shuffled: torch.Tensor = core.pixel_shuffle(patches.reshape(tiles, side, side, -1), config.downsample_ratio)
    return shuffled.flatten(1, 2)


def project(model: Any, features: torch.Tensor) -> torch.Tensor:
    """(tiles x 256, hidden)."""
    embeddings: torch.Tensor = model.model.multi_modal_projector(features)
    return embeddings.flatten(0, 1)
