"""Which caches of vision features the models of a configuration can use."""

from __future__ import annotations

from pathlib import Path

import torch

from vlmflow.errors import UserError
from vlmflow.files import MANIFEST
from vlmflow.training.features import place_of, tower_hash

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def folders_in_use(results: Path, folders: dict[str, list[str]]) -> set[str] | None:
    """Names below cache/features; None if a model is not there, so that its tower is not known."""
    models = [results / "models" / name / MANIFEST for name in folders["models"]]
    starts = [results / "pretrain" / name / MANIFEST for name in folders["pretrain"]]
    parts: list[list[Path]] = [[], *([start] for start in starts if start.is_file())]
    try:
        towers = {tower_hash(model, part) for model in models for part in parts}
    except (UserError, OSError):
        return None
    return {place_of(tower, dtype) for tower in towers for dtype in _DTYPES}
