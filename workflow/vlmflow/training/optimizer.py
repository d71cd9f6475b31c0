"""AdamW with a learning rate per group, linear warm-up and decay."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from vlmflow.training.options import TrainingOptions


def make_optimizer(
    model: torch.nn.Module, options: TrainingOptions, projector_rate: float | None = None
) -> torch.optim.AdamW:
    """Groups: projector or rest, with weight decay (matrices) or without (vectors: biases and norms)."""
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            shape = getattr(parameter, "ds_shape", parameter.shape)  # ZeRO-3 leaves an empty vector in its place
            groups.setdefault(("multi_modal_projector" in name, len(shape) > 1), []).append(parameter)
    settings: list[dict[str, Any]] = [
        {
            "params": parameters,
            "lr": projector_rate if is_projector and projector_rate is not None else options.learning_rate,
            "weight_decay": options.weight_decay if decays else 0.0,
        }
        for (is_projector, decays), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]
    first, second = options.betas
    return torch.optim.AdamW(settings, betas=(first, second), fused=torch.cuda.is_available() or None)


def make_scheduler(optimizer: torch.optim.Optimizer, options: TrainingOptions, steps: int) -> LambdaLR:
    """Linear rise over ``warmup_ratio`` of the steps, then cosine or linear decay to 0, or constant."""
    warmup = math.ceil(options.warmup_ratio * steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = (step - warmup) / max(1, steps - warmup)
        return {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "constant": 1.0}[options.schedule]

    return LambdaLR(optimizer, factor)
