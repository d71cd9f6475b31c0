"""What a training job is told. The keys and their defaults are described in workflow/schemas/config.schema.yaml."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


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

    calibrate: int


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(TrainingOptions):
    """Instruction tuning; ``lora`` and ``quantization`` are given where the method uses them."""

    method: str
    projector_learning_rate: float | None
    train_projector: bool
    lora: dict[str, Any] | None = None
    quantization: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How the work is split and kept; the result does not depend on it."""

    micro_batch_size: int
    gradient_checkpointing: bool
    deepspeed: str | None
    workers: int
    checkpoint_steps: int
