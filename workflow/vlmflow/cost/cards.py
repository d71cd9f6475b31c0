"""Graphics cards by name: what their matrix units can do at most."""

from __future__ import annotations

import re

_PEAK_FLOPS = {
    "H200": 989e12,
    "GH200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "4090": 165e12,
    "3090": 71e12,
    "A6000": 155e12,
    "V100": 125e12,
    "T4": 65e12,
}
"""Dense matrix products, FLOP/s in bf16 with fp32 accumulation (fp16 on V100 and T4, which have no bf16), from the data
sheets of NVIDIA; narrower names first."""


def peak_flops(device_name: str) -> float | None:
    """FLOP/s that a card can reach at most; ``device_name`` as ``torch.cuda.get_device_name`` has it, None if unknown.

    >>> peak_flops("NVIDIA A100-SXM4-80GB")
    312000000000000.0
    """
    found = (peak for name, peak in _PEAK_FLOPS.items() if re.search(rf"\b{name}\b", device_name, re.IGNORECASE))
    return next(found, None)
