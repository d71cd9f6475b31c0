"""Low-rank adapters as new values of single weights, without the model around them.

LoRA (Hu et al. 2021), rsLoRA (Kalajdzievski 2023) and DoRA (Liu et al. 2024), in the files and with the arithmetic of
Hugging Face's peft.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key

from vlmflow.errors import UserError
from vlmflow.files import read_json
from vlmflow.weights.checkpoint import Checkpoint
from vlmflow.weights.kinds import Kind, Tensors

ADAPTER = "adapter_model.safetensors"
_CONFIG = "adapter_config.json"
_PREFIX = "base_model.model."
_ROWS = 64  # of a matrix that are merged at a time
_A, _B, _MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"
_REFUSED = ("fan_in_fan_out", "lora_bias", "trainable_token_indices", "layer_replication", "target_parameters",
            "use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config", "kasa_config", "velora_config",
            "monteclora_config", "modules_to_save")  # fmt: skip
"""Options of peft that make more than a low-rank update of single matrices."""
_NEEDED = {"peft_type", "r", "lora_alpha", "target_modules"}
_NARROWS = ("layers_to_transform", "exclude_modules")
"""Options that take layers away from those that ``target_modules`` names."""
_KEEPS_BASE = (True, False, "gaussian", "orthogonal", "eva")
"""Values of ``init_lora_weights`` that leave the base's weights as they were."""


@dataclass(frozen=True)
class LowRank:
    """The update of one weight: W + scale * B A, and with a magnitude m the rows scaled to the norms m (DoRA).

    Its matrices are read when they are needed: an adapter of high rank is a good part of the model.
    """

    tensors: Tensors
    module: str
    """Name of the adapted layer, as the adapter's file has it."""
    shape: tuple[int, int]
    """(out, in) of the weight that it belongs to."""
    scale: float
    dora: bool

    def merged(self, weight: torch.Tensor) -> tuple[torch.Tensor, float]:
        """(out, in) float32, from ``weight`` in any number format, and the largest error.

        The error is how far the result is from base plus adapter on a random input, relative to the largest output.
        """
        result = torch.empty(self.shape)
        error = self.merge_rows(weight, lambda rows, merged: result[rows].copy_(merged))
        return result, error

    def merge_rows(self, weight: torch.Tensor, take: Callable[[slice, torch.Tensor], object]) -> float:
        """Hand the merged rows to ``take``, a few at a time, which stay in the processor's cache; return the error."""
        down, up = self._read(_A), self._read(_B)
        magnitude = self._read(_MAGNITUDE) if self.dora else None
        inputs = torch.randn(self.shape[1], generator=torch.Generator().manual_seed(0))
        through_adapter = self.scale * torch.mv(up, torch.mv(down, inputs))
        difference = largest = torch.zeros(())
        for start in range(0, self.shape[0], _ROWS):
            rows = slice(start, start + _ROWS)
            base = weight[rows].float()
            unmerged = torch.mv(base, inputs) + through_adapter[rows]
            merged = torch.addmm(base, up[rows], down, alpha=self.scale)
            if magnitude is not None:
                scales = magnitude[rows] / torch.linalg.norm(merged, dim=1)
                unmerged *= scales
                merged *= scales.unsqueeze(1)
            difference = torch.maximum(difference, (torch.mv(merged, inputs) - unmerged).abs().max())
            largest = torch.maximum(largest, unmerged.abs().max())
            take(rows, merged)
        return float(difference / largest) if difference != 0 else 0.0

    def _read(self, ending: str) -> torch.Tensor:
        return self.tensors.read(self.module + ending).float()


def read_adapter(folder: Path, linears: Collection[str]) -> dict[str, LowRank]:
    """Module name (as in the model that was trained) -> update, from a peft directory.

    ``linears``: names of the linear layers of that model. Raises :class:`UserError` for adapters of another kind,
    tensors that are missing or have no place, and layers that the adapter's configuration does not name, or names and
    that have no adapter.
    """
    config = read_json(folder / _CONFIG)
    _check_config(config, folder / _CONFIG)
    checkpoint = Checkpoint(folder / ADAPTER)
    modules = _modules(checkpoint.kinds, folder)
    updates = {module.removeprefix(_PREFIX): _update(module, checkpoint, config) for module in modules}
    if not updates:
        raise UserError("the adapter is empty", "train it again", file=folder / ADAPTER)
    lacking = [module for module in linears if module not in updates and _is_target(config, module)]
    if lacking and not any(config.get(key) for key in _NARROWS) and config["target_modules"] != "all-linear":
        reason = f"{len(lacking)} layers should have an adapter and have none, first {lacking[0]}"
        raise UserError(reason, "the file is not whole; train it again", file=folder / ADAPTER)
    named = [module for module in updates if not _is_target(config, module)]
    if named:
        raise UserError(
            f"{len(named)} layers have an adapter but are no target of it, first {named[0]}",
            "the two files of the adapter do not belong together",
            file=folder / _CONFIG,
        )
    return updates


def _check_config(config: Mapping[str, Any], file: Path) -> None:
    if not isinstance(config, dict) or not set(config) >= _NEEDED:
        lacking = sorted(_NEEDED - set(config)) if isinstance(config, dict) else sorted(_NEEDED)
        raise UserError(f"no adapter_config.json of peft: it lacks {', '.join(lacking)}", file=file)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UserError(f"an adapter of type {kind}", "only LoRA, rsLoRA and DoRA can be merged", file=file)
    used = [key for key in _REFUSED if config.get(key)]
    if config.get("bias", "none") != "none":
        used.append("bias")
    if config.get("init_lora_weights", True) not in _KEEPS_BASE:
        used.append("init_lora_weights")  # PiSSA, OLoRA, LoftQ, CorDA: the base's own weights were changed
    if used:
        raise UserError(f"adapters with {', '.join(used)} cannot be merged", "merge it with peft itself", file=file)


def _modules(kinds: Mapping[str, Kind], folder: Path) -> Iterator[str]:
    """The adapted layers, as the file names them; every tensor must belong to one."""
    unknown = [name for name in kinds if not name.endswith((_A, _B, _MAGNITUDE))]
    if unknown:
        raise UserError(f"no part of a low-rank adapter: {unknown[:3]}", file=folder / ADAPTER)
    for name in dict.fromkeys(re.sub(r"\.lora_(A\.weight|B\.weight|magnitude_vector)$", "", name) for name in kinds):
        if name + _A not in kinds or name + _B not in kinds:
            raise UserError(f"half of the adapter of {name.removeprefix(_PREFIX)} is missing", file=folder / ADAPTER)
        yield name


def _update(module: str, checkpoint: Checkpoint, config: Mapping[str, Any]) -> LowRank:
    name = module.removeprefix(_PREFIX)
    down, up = checkpoint.kinds[module + _A].shape, checkpoint.kinds[module + _B].shape
    whole = [part for part in (_A, _B) if not checkpoint.kinds[module + part].dtype.is_floating_point]
    if whole:
        raise UserError(f"the adapter of {name} is no floating-point numbers", "train again", file=checkpoint.path)
    rank = _of_pattern(config.get("rank_pattern"), name, config["r"])
    alpha = _of_pattern(config.get("alpha_pattern"), name, config["lora_alpha"])
    if len(down) != 2 or len(up) != 2 or down[0] != rank or up[1] != rank:
        reason = f"the adapter of {name} is {list(up)} x {list(down)}, its rank should be {rank}"
        raise UserError(reason, file=checkpoint.path)
    dora = module + _MAGNITUDE in checkpoint.kinds
    if bool(config.get("use_dora")) != dora:
        raise UserError(f"use_dora and the tensors of {name} do not agree", file=checkpoint.path)
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return LowRank(checkpoint, module, (up[0], down[1]), scale, dora)


def _of_pattern(pattern: Mapping[str, float] | None, module: str, default: float) -> float:
    return (pattern or {}).get(get_pattern_key(list(pattern or {}), module), default)


def _is_target(config: Mapping[str, Any], module: str) -> bool:
    targets = config["target_modules"]
    if isinstance(targets, str):
        try:
            return targets == "all-linear" or re.fullmatch(targets, module) is not None
        except re.error as error:
            raise UserError(f"target_modules is no regular expression: {error}", file=_CONFIG) from None
    return any(module == target or module.endswith(f".{target}") for target in targets)
