"""The small files of a native InternVL model directory: configuration, processor, generation settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, InternVLConfig, PreTrainedTokenizerFast
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from vlmflow.convert.internvl_config import tile_range, tile_side, tile_tokens
from vlmflow.convert.layout import checking, generation_settings
from vlmflow.errors import UserError
from vlmflow.files import read_json, write_json
from vlmflow.models.template_tokenizer import end_of_turn

_BICUBIC = 3  # PIL.Image.Resampling


def write_processor(official: Mapping[str, Any], max_tiles: int | None, output: Path) -> int:
    """Write processor_config.json for transformers' InternVLProcessor; return the tiles a picture may have.

    Written by hand, because the video half of that class needs torchvision even where no video is read.
    """
    fewest, most = tile_range(official, max_tiles)
    side = {"height": tile_side(official), "width": tile_side(official)}
    pictures = {
        "do_convert_rgb": True,
        "do_resize": True,
        "size": side,
        "resample": _BICUBIC,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": IMAGENET_DEFAULT_MEAN,
        "image_std": IMAGENET_DEFAULT_STD,
    }
    content = {
        "processor_class": "InternVLProcessor",
        "image_seq_length": tile_tokens(official),
        "image_processor": {
            "image_processor_type": "GotOcr2ImageProcessor",
            **pictures,
            "crop_to_patches": True,
            "min_patches": fewest,
            "max_patches": most,
        },
        "video_processor": {"video_processor_type": "InternVLVideoProcessor", **pictures},
    }
    write_json(output / "processor_config.json", content)
    return most


def set_tiles(official: dict[str, Any], folder: Path) -> bool:
    """Give an official config.json the tiles that the processor of the model directory cuts; say if that changed it."""
    file = folder / "processor_config.json"
    with checking("broken processor", file):
        pictures = read_json(file)["image_processor"]
        found = int(pictures["min_patches"]), int(pictures["max_patches"])
    if found == tile_range(official):
        return False
    official |= {"dynamic_image_size": True, "use_thumbnail": True}
    official["min_dynamic_patch"], official["max_dynamic_patch"] = found
    return True


def generation_config(folder: Path, config: InternVLConfig, tokenizer: PreTrainedTokenizerFast) -> GenerationConfig:
    """The official generation_config.json, and an answer ends at the end of a turn, as in official chat."""
    file = folder / "generation_config.json"
    given = read_json(file) if file.is_file() else {}
    known = given if isinstance(given, dict) else {}
    ends = known.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if not all(isinstance(end, int) for end in ends):
        raise UserError(f"broken generation settings: eos_token_id {ends}", file=file, field="eos_token_id")
    ends = list(dict.fromkeys([*ends, *end_of_turn(tokenizer)]))
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else config.text_config.pad_token_id
    start = known.get("bos_token_id", config.text_config.bos_token_id)
    return generation_settings(given, file, bos_token_id=start, eos_token_id=ends, pad_token_id=padding)
