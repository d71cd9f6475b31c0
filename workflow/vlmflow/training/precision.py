"""The number format that a training stage computes in."""

from __future__ import annotations

import torch

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def compute_dtype(precision: str) -> torch.dtype:
    """Format of frozen weights and activations; what is trained is kept in float32.

    ``auto`` is bfloat16 where the GPU has it and float32 elsewhere: a CPU without bfloat16 units is many times slower
    with it.
    """
    if precision == "auto":
        native = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float32
    return _DTYPES[precision]
