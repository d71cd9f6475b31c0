"""Folders of published models, seen without reading their tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig

from vlmflow.convert.layout import checking
from vlmflow.errors import UserError
from vlmflow.files import read_json
from vlmflow.weights.kinds import Span, Tensors, span_of
from vlmflow.weights.skeleton import expected_tensors

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
    if path.is_file():
        raise UserError("a file, not a folder", "give the folder of a whole checkpoint", file=path)
    if not (path / "config.json").is_file():
        raise UserError("no Hugging Face model directory (config.json is missing)", file=path)
    return _object(path / "config.json")


def local_config(path: Path) -> Any:
    """transformers' configuration of a folder; no code of its own is run."""
    content = config_of(path)
    refuse_quantised(content, path / "config.json")
    kind = content.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise UserError(f"transformers has no model of type '{kind}'", "code in the folder is never run", file=path)
    with checking("broken configuration", path / "config.json"):
        return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)


def refuse_quantised(content: Mapping[str, Any], file: Path) -> None:
    """Raise :class:`UserError` if a config.json is of weights that are not plain numbers (AWQ, GPTQ, bitsandbytes)."""
    found = content.get("quantization_config")
    if found:
        method = found.get("quant_method", "unknown") if isinstance(found, dict) else found
        raise UserError(
            f"quantised model: its weights are stored by the method {method}",
            "use the checkpoint that is not quantised",
            file=file,
            field="quantization_config",
        )


def expected_of(config: Any, file: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of what a model directory must contain; ``file`` is named where the configuration is none."""
    with checking("broken configuration", file):
        return expected_tensors(config)


def generation_of(path: Path) -> dict[str, Any]:
    """The content of a folder's generation_config.json, empty if there is none."""
    file = path / "generation_config.json"
    return _object(file) if file.is_file() else {}


def _object(file: Path) -> dict[str, Any]:
    content = read_json(file)
    if not isinstance(content, dict):
        raise UserError("no JSON object", "get the whole directory again", file=file)
    return content


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
