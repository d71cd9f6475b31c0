"""Folders of published models, seen without reading their tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from vlmflow.errors import UserError
from vlmflow.files import read_json
from vlmflow.weights.kinds import Span, Tensors, span_of

_BUFFERS = ("position_ids", "rotary_emb.inv_freq")
"""Constants that old releases stored."""


class Chosen:
    """Some of the tensors of another source."""

    def __init__(self, tensors: Tensors, wanted: Callable[[str], bool]) -> None:
        self._tensors = tensors
        self.kinds = {name: kind for name, kind in tensors.kinds.items() if wanted(name)}

    def read(self, name: str) -> torch.Tensor:
        """The tensor, from the source."""
        return self._tensors.read(name)

    def span(self, name: str) -> Span | None:
        """Where its bytes lie, if the source knows."""
        return span_of(self._tensors, name)


def config_of(path: Path) -> dict[str, Any]:
    """The content of a folder's config.json."""
    if not (path / "config.json").is_file():
        raise UserError("no Hugging Face model directory (config.json is missing)", file=path)
    return dict(read_json(path / "config.json"))


def local_config(path: Path) -> Any:
    """transformers' configuration of a folder; no code of its own is run."""
    try:
        return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, TypeError) as error:
        reason = f"transformers has no model of type '{config_of(path).get('model_type')}'"
        raise UserError(reason, str(error).splitlines()[0][:200], file=path) from None


def generation_of(path: Path) -> dict[str, Any]:
    """The content of a folder's generation_config.json, empty if there is none."""
    file = path / "generation_config.json"
    return dict(read_json(file)) if file.is_file() else {}


def without_buffers(tensors: Tensors) -> Chosen:
    """What of the tensors is trained."""
    return Chosen(tensors, lambda name: not name.endswith(_BUFFERS))


def cleaned(config: Any) -> Any:
    """The configuration without the place that it was read from and the code that came with it."""
    config.name_or_path = ""
    for key in ("auto_map", "_attn_implementation_autoset"):
        if hasattr(config, key):
            delattr(config, key)
    return config
