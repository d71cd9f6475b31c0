"""Which linear layers adapters go to, by kind of network: those of its blocks, never an embedding or output matrix.

The lists are InternVL's own (modeling_internvl_chat.py, wrap_llm_lora) and LLaVA's. A search for "all linear layers"
finds InternLM2's output matrix too, which is called ``output`` there; XTuner 0.1 adapts it unawares.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from vlmflow.errors import UserError
from vlmflow.models.directory import LANGUAGE, VISION

_LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_CLIP = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
LINEARS: dict[str, tuple[str, ...]] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "phi3": ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
    "clip_vision_model": _CLIP,
    "siglip_vision_model": _CLIP,
    "dinov2": ("q_proj", "k_proj", "v_proj", "o_proj", "query", "key", "value", "dense", "fc1", "fc2"),
    "internvl_vision": ("q_proj", "k_proj", "v_proj", "projection_layer", "fc1", "fc2"),
}
"""Kind of network (``model_type``) -> names of its linear layers, in all releases of transformers that are in use."""
_BLOCKS = {LANGUAGE: r"layers\.", VISION: r"(?:vision_model\.)?encoder\.layers?\."}


def linear_pattern(config: Any, part: str, unused: Collection[str] = ()) -> str:
    """A regular expression for the module names of the linear layers of a part (LANGUAGE or VISION) of a model.

    Blocks that the parameters ``unused`` belong to are left out. Raises :class:`UserError` for a network whose layers
    are not listed here.
    """
    kind = (config.text_config if part == LANGUAGE else config.vision_config).model_type
    if kind not in LINEARS:
        raise UserError(f"no list of linear layers for a network of type '{kind}'", f"there is {', '.join(LINEARS)}")
    blocks = rf"{re.escape(part)}\.{_BLOCKS[part]}"
    skipped = sorted({int(found[1]) for name in unused if (found := re.match(rf"{blocks}(\d+)\.", name))})
    number = rf"(?!(?:{'|'.join(map(str, skipped))})\.)\d+" if skipped else r"\d+"
    return rf"{blocks}{number}\..*\.({'|'.join(LINEARS[kind])})"
