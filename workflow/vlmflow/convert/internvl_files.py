"""The small files of a native InternVL model directory: configuration, processor, generation settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, InternVLConfig, PreTrainedTokenizerFast
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from vlmflow.convert.internvl_config import tile_side, tile_tokens
from vlmflow.files import read_json, write_json
from vlmflow.models.template_tokenizer import end_of_turn

_BICUBIC = 3  # PIL.Image.Resampling


def write_text_config(config: InternVLConfig, output: Path) -> None:
    """Write config.json, with ``architectures`` inside ``text_config`` too: LMDeploy looks for it there."""
    config.save_pretrained(output)
    content = read_json(output / "config.json")
    content["text_config"]["architectures"] = config.text_config.architectures
    write_json(output / "config.json", content)


def write_processor(official: Mapping[str, Any], max_tiles: int | None, output: Path) -> int:
    """Write processor_config.json for transformers' InternVLProcessor; return the tiles a picture may have.

    Written by hand, because the video half of that class needs torchvision even where no video is read.
    """
    dynamic = official.get("dynamic_image_size", False)
    fewest = official.get("min_dynamic_patch", 1) if dynamic else 1
    most = (max_tiles or official.get("max_dynamic_patch", 6)) if dynamic else 1
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
    return int(most)


def write_generation_config(
    folder: Path, config: InternVLConfig, tokenizer: PreTrainedTokenizerFast, output: Path
) -> None:
    """Write generation_config.json: the official one, and an answer ends at the end of a turn, as in official chat."""
    file = folder / "generation_config.json"
    given: dict[str, Any] = read_json(file) if file.is_file() else {}
    given.pop("transformers_version", None)
    ends = given.pop("eos_token_id", None)
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    ends = list(dict.fromkeys([*ends, *end_of_turn(tokenizer)]))
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else config.text_config.pad_token_id
    given |= {"eos_token_id": ends, "pad_token_id": padding}
    given.setdefault("bos_token_id", config.text_config.bos_token_id)
    GenerationConfig(**given).save_pretrained(output)
