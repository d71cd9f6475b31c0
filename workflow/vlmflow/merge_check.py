"""Does a merged model compute what was trained? Logits on fixed prompts, where the model fits in memory."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from vlmflow.errors import UserError
from vlmflow.lora import ADAPTER
from vlmflow.memory import available_memory
from vlmflow.models.directory import load_directory, load_model, load_processor
from vlmflow.models.logits import LogitsDifference, compare_logits, fixture_logits
from vlmflow.training.adapters import dequantised_weights, load_base
from vlmflow.training.options import FinetuneOptions
from vlmflow.training.parts import load_parts
from vlmflow.weights.checkpoint import Checkpoint
from vlmflow.weights.skeleton import disk_name

logger = logging.getLogger(__name__)
_TOLERANCE = 1e-3
"""Largest difference of float32 logits, relative to the largest logit, that rounding explains (measured: 1e-5)."""
_ROUNDED = 0.9
"""Least share of positions whose most likely token survives storing in 16 bits."""
_ROOM = 1.5
"""Memory that a comparison takes, in sizes of the model in float32 (measured: 1.2 with short prompts)."""


def check_logits(
    model: Path,
    adapter: Path,
    options: FinetuneOptions,
    quantised: bool,
    merged: Callable[[str, torch.Tensor], torch.Tensor],
    directory: Path,
) -> dict[str, Any]:
    """Compare the logits of base and adapter, unmerged, with those of the merged weights; return the figures.

    ``merged`` gives a merged weight before rounding, by its name in the files and the base's value; ``directory`` holds
    what was stored. With ``quantised`` the adapter was merged over the 4-bit base. Raises :class:`UserError` if they
    differ. A model that does not fit in memory is not compared, and the figures say so.
    """
    base = Checkpoint(model.parent)
    obstacle = lack_of_memory(base, _ROOM + quantised)
    if obstacle:
        logger.warning("logits are not compared: %s", obstacle)
        return {"logits_not_compared": obstacle}
    processor = load_processor(model)
    network = load_model(model, dtype=torch.float32)
    load_parts(network, adapter)
    if quantised:
        network.load_state_dict(dequantised_weights(load_base(model, options, adapter)), strict=False)
    unmerged = _with_adapter(network, adapter, lambda trained: fixture_logits(trained, processor))
    _replace(network, base, merged)
    exact = compare_logits(unmerged, fixture_logits(network, processor))
    del network
    logger.info("logits, merged against unmerged: %s", exact)
    if not exact.max_abs <= _TOLERANCE * exact.scale:  # also catches NaN
        raise UserError(
            f"the merged model computes something else: logits differ by up to {exact.max_abs:.3g}",
            "do not use the merged weights; report this with the adapter's adapter_config.json",
            file=adapter.parent,
        )
    stored_logits = fixture_logits(load_directory(directory, dtype=torch.float32), processor)
    stored = compare_logits(unmerged, stored_logits)
    check_rounding(stored, exact=all(kind.dtype == torch.float32 for kind in base.kinds.values()))
    gap = _gap(model, adapter, options, processor, stored_logits)
    return {
        "logits_merged_against_unmerged": asdict(exact),
        "logits_stored_against_unmerged": asdict(stored),
        "logits_merged_against_trained": asdict(gap) if gap else None,
    }


def lack_of_memory(checkpoint: Checkpoint, room: float = _ROOM) -> str | None:
    """Why the logits of a checkpoint cannot be computed here, None if they can.

    ``room`` is the memory that it takes, in sizes of the model in float32.
    """
    values = sum(kind.nbytes // kind.dtype.itemsize for kind in checkpoint.kinds.values())
    needed, free = room * 4 * values / 1e9, available_memory() / 1e9
    return f"that needs {needed:.1f} GB of memory, {free:.1f} GB are free" if needed > free else None


def all_finite(values: torch.Tensor) -> bool:
    """Whether there is no NaN and no infinity among ``values``, without a copy of them (``isfinite`` makes several)."""
    return not values.numel() or all(bool(end.isfinite()) for end in values.aminmax())


def check_rounding(difference: LogitsDifference, exact: bool = False) -> None:
    """Raise :class:`UserError` if storing the weights, in float32 if ``exact``, changed what the model says."""
    same = difference.max_abs <= _TOLERANCE * difference.scale if exact else difference.argmax_agreement >= _ROUNDED
    if not same or not math.isfinite(difference.max_abs):
        raise UserError(
            f"the stored model differs: {difference}", "choose another dtype (bfloat16 keeps float32's range)"
        )


def _with_adapter(network: Any, adapter: Path, compute: Callable[[Any], list[torch.Tensor]]) -> list[torch.Tensor]:
    """What ``compute`` gives with the adapter, if there is one; afterwards ``network`` has its linear layers back."""
    if not (adapter.parent / ADAPTER).is_file():
        return compute(network)
    wrapped = PeftModel.from_pretrained(network, adapter.parent).eval()
    logits = compute(wrapped)
    wrapped.unload()
    return logits


@torch.no_grad()
def _replace(network: Any, base: Checkpoint, merged: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    """Give every parameter its merged value."""
    for name, parameter in network.named_parameters():
        stored = disk_name(name, network.config)
        parameter.copy_(merged(stored, base.read(stored)))


def _gap(
    model: Path, adapter: Path, options: FinetuneOptions, processor: Any, merged: list[torch.Tensor]
) -> LogitsDifference | None:
    """How far the merged model is from the one that was trained, adapter over the 4-bit base; None without one."""
    if options.quantization is None:
        return None
    trained = _with_adapter(
        load_base(model, options, adapter), adapter, lambda network: fixture_logits(network, processor)
    )
    gap = compare_logits(trained, merged)
    logger.info("logits, merged against the 4-bit model that was trained: %s", gap)
    return gap
