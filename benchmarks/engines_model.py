"""A small model that has really learnt its task, made by the project's own stages: build, train, merge, convert."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from engines_data import make_data

import official
from vlmflow.deploy import convert_model
from vlmflow.merge import merge_adapter
from vlmflow.models.build import build_model
from vlmflow.tokens.count import count_tokens
from vlmflow.training.finetune import train_adapter
from vlmflow.training.options import Execution, FinetuneOptions

_TINY = Path(__file__).resolve().parents[1] / "data" / "tiny"
_NODE = {"template": None, "max_tiles": None, "image_size": None, "feature_layer": -2, "dtype": "float32", "seed": 0}
_LORA = {"rank": 16, "alpha": 32, "dropout": 0.0, "variant": "lora", "vision_rank": 0, "vision_alpha": 16}
_EXECUTION = Execution(
    micro_batch_size=32,
    gradient_checkpointing=False,
    deepspeed=None,
    workers=4 if torch.cuda.is_available() else 0,
    checkpoint_steps=100_000,
)


class Directories(NamedTuple):
    """Manifests of the model directories to compare."""

    merged: Path
    """LoRA merged, in the base's float32."""
    converted: Path
    """The same in bfloat16."""


def make_directories(family: str, folder: Path, records: int, epochs: float) -> Directories:
    """Build a base, teach all of its language model the task, fine-tune that with LoRA, merge, convert."""
    data = make_data(folder / "data", records)
    base, taught = folder / "base" / "manifest.json", folder / "taught" / "manifest.json"
    {"llava": _build_llava, "internvl": _build_internvl}[family](base)
    full = _train(base, data, folder / "full", "full", epochs, learning_rate=2e-3)
    merge_adapter({"base": "original"}, base, full, taught)
    lora = _train(taught, data, folder / "lora", "lora", epochs / 4, learning_rate=1e-3)
    result = Directories(folder / "merged" / "manifest.json", folder / "converted" / "manifest.json")
    merge_adapter({"base": "original"}, taught, lora, result.merged)
    convert_model({"dtype": "bfloat16", "max_shard_mb": 1}, result.merged, result.converted)
    return result


def _build_llava(output: Path) -> None:
    """The repository's tiny language model and CLIP tower, with an untrained projector."""
    build_model({**_NODE, "family": "llava", "language": str(_TINY / "language"), "vision": str(_TINY / "vision"),
                 "template": "chatml"}, output)  # fmt: skip


def _build_internvl(output: Path) -> None:
    """A random twin of the official InternVL2-2B: InternViT for 56-pixel tiles of 4 tokens, 4 layers of InternLM2."""
    official.HEAD_DIM, official.LAYERS = 32, 4  # the twins of the tests are too small to learn much
    source = official.make_official("internvl2-2b", output.parents[1] / "official", dtype=torch.float32)
    build_model({**_NODE, "family": "internvl", "checkpoint": str(source)}, output)


def _train(model: Path, data: Path, folder: Path, method: str, epochs: float, **changed: Any) -> Path:
    """Count the tokens of ``data`` and train on them; returns the manifest of the result."""
    tokens = folder / "tokens" / "manifest.json"
    counting = {"max_length": 512, "too_long": "error", "max_dropped": 0, "datasets": [data.parent.name]}
    count_tokens(counting, model, [data], tokens)
    options = FinetuneOptions(
        epochs=epochs, batch_size=32, weight_decay=0.0, betas=[0.9, 0.999], warmup_ratio=0.05, schedule="cosine",
        max_grad_norm=1.0, precision="fp32", seed=0, repeat=[1.0], method=method, projector_learning_rate=None,
        train_projector=True, lora=_LORA if method == "lora" else None, **changed,
    )  # fmt: skip
    output = folder / "adapter" / "manifest.json"
    train_adapter(options, model, [], tokens, _EXECUTION, folder / "state", output)
    return output
