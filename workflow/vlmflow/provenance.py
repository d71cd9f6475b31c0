"""Where an artefact comes from: configuration, inputs, code, packages, hardware, time and memory."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import sys
import time
from pathlib import Path
from typing import Any

from vlmflow import __version__
from vlmflow.files import write_json

_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "deepspeed", "lmdeploy", "safetensors",
             "tokenizers", "pillow", "numpy")  # fmt: skip
_STARTED = time.time()


def write_provenance(directory: Path, config: dict[str, Any], inputs: dict[str, str], **facts: Any) -> None:
    """Write ``provenance.json`` into ``directory``.

    ``config`` is the resolved configuration of the stage (secrets never enter a configuration: tokens are read from the
    environment only), ``inputs`` maps each input to its content hash, ``facts`` are the stage's own measurements.
    """
    write_json(
        directory / "provenance.json",
        {
            "config": config,
            "inputs": inputs,
            **facts,
            "vlmflow": __version__,
            "python": platform.python_version(),
            "packages": _versions(),
            "hardware": _hardware(),
            "wall_seconds": round(time.time() - _STARTED, 1),
            "peak_memory_mb": round(peak_memory_mb(), 1),
        },
    )


def peak_memory_mb() -> float:
    """Largest resident set of this process so far, in MB (10^6 bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _hardware() -> dict[str, Any]:
    hardware: dict[str, Any] = {"machine": platform.machine(), "cpus": os.cpu_count()}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        hardware["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        hardware["peak_gpu_memory_mb"] = round(torch.cuda.max_memory_allocated() / 1e6, 1)
    return hardware
