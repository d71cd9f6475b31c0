"""What a training job is told. The keys and their defaults are described in workflow/schemas/config.schema.yaml."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmflow.errors import UserError
from vlmflow.files import read_json


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Everything that the result of a training stage depends on, besides its inputs."""

    epochs: float
    batch_size: int
    learning_rate: float
    weight_decay: float
    betas: list[float]
    warmup_ratio: float
    schedule: str
    max_grad_norm: float
    precision: str
    seed: int
    repeat: list[float]
    weights: list[float] | None = None


@dataclass(frozen=True, kw_only=True)
class PretrainOptions(TrainingOptions):
    """Projector alignment."""

    train: list[str]
    calibrate: int


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(TrainingOptions):
    """Instruction tuning; ``lora`` and ``quantization`` are given where the method uses them."""

    method: str
    projector_learning_rate: float | None
    train_projector: bool
    train_vision: bool = False
    lora: dict[str, Any] | None = None
    quantization: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How the work is split and kept; the result does not depend on it. None leaves the choice to the machine."""

    micro_batch_size: int | None = None
    gradient_checkpointing: bool | int | str = "auto"
    compile: bool | None = None
    deepspeed: str | None = None
    workers: int | None = None
    gpu_memory_gb: float | None = None
    feature_cache_gb: float | None = None
    checkpoint_steps: int | None = None
    checkpoint_minutes: float = 10
    checkpoints_kept: int = 2


def trained_with(provenance: Path) -> FinetuneOptions:
    """What a fine-tuning was told, by its provenance.json."""
    try:
        return FinetuneOptions(**read_json(provenance)["config"])
    except (KeyError, TypeError) as error:
        raise UserError(f"not the provenance of a fine-tuning: {error}", "train again", file=provenance) from None
