"""The deployment directory: number format and shard size of choice, written one tensor at a time and checked."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from vlmflow.errors import UserError
from vlmflow.files import read_json, read_manifest, staged_directory, write_json, write_manifest
from vlmflow.links import link_or_copy
from vlmflow.merge_check import all_finite, check_rounding, lack_of_memory
from vlmflow.models.directory import copy_side_files, load_directory, load_model, load_processor
from vlmflow.models.logits import compare_logits, fixture_logits
from vlmflow.provenance import write_provenance
from vlmflow.weights.checkpoint import Checkpoint
from vlmflow.weights.mapping import SAME, Piece
from vlmflow.weights.skeleton import expected_tensors
from vlmflow.weights.stream import check_tensors, files_to_keep, write_tensors

logger = logging.getLogger(__name__)


def convert_model(config: dict[str, Any], model: Path, output: Path, drop: Path | None = None) -> None:
    """Write ``model`` (manifest) in another number format (``dtype``) and with files of at most ``max_shard_mb``.

    Every tensor must be finite in the new format; where the model fits in memory, the written directory is loaded again
    as a user would, and its logits must agree with the source's. Weights that need not change are hard links. When all
    is done, the weights of ``model`` are deleted if ``drop`` is given: first that file, which stands for them.
    """
    source = read_manifest(model)
    tensors, dtype = Checkpoint(model.parent), getattr(torch, config["dtype"])
    expected = expected_tensors(AutoConfig.from_pretrained(model.parent, local_files_only=True))
    pieces = [_piece(name, tensors, dtype) for name in tensors.kinds]
    most = config["max_shard_mb"] * 1_000_000
    kept = files_to_keep(tensors, pieces, most)
    with staged_directory(output.parent, model) as directory:
        if kept:
            check_tensors(tensors.kinds, expected)
            for file in kept:
                link_or_copy(file, directory / file.name)
        else:
            write_tensors(tensors, pieces, directory, expected, dtype=dtype, max_shard_bytes=most)
        copy_side_files(model.parent, directory)
        _set_dtype(directory / "config.json", config["dtype"])
        write_provenance(directory, config, {"model": source["hash"]}, **_check(model, tensors, directory))
        write_manifest(directory, dtype=config["dtype"], converted_from=source["hash"])
    if drop is not None:
        drop.unlink()
        for file in model.parent.glob("*.safetensors"):
            file.unlink()


def _piece(name: str, tensors: Checkpoint, dtype: torch.dtype) -> Piece:
    def cast(value: torch.Tensor) -> tuple[torch.Tensor]:
        rounded = value.to(dtype)
        if not value.is_meta and not all_finite(rounded):
            if not all_finite(value):
                raise UserError(f"{name} has values that are no numbers", "train again", file=tensors.path)
            largest = value.abs().max().item()
            reason = f"{name} has values up to {largest:.3g}, which {str(dtype).removeprefix('torch.')} cannot hold"
            raise UserError(reason, "choose bfloat16, which keeps float32's range", file=tensors.path, field="dtype")
        return (rounded,)

    kind = tensors.kinds[name]
    copied = kind.dtype == dtype or not kind.dtype.is_floating_point
    return Piece((name,), (name,), SAME.forward if copied else cast)


def _set_dtype(path: Path, name: str) -> None:
    config = read_json(path)
    for part in (config, config["text_config"], config["vision_config"]):
        part["dtype"] = name
    write_json(path, config)


def _check(model: Path, tensors: Checkpoint, directory: Path) -> dict[str, Any]:
    """Compare the logits of source and result; the figures, or why there are none."""
    obstacle = lack_of_memory(tensors)
    if obstacle:
        logger.warning("logits are not compared: %s", obstacle)
        return {"logits_not_compared": obstacle}
    processor = load_processor(model)
    reference = fixture_logits(load_model(model, dtype=torch.float32), processor)
    difference = compare_logits(reference, fixture_logits(load_directory(directory, dtype=torch.float32), processor))
    logger.info("logits, converted against merged: %s", difference)
    check_rounding(difference)
    return {"logits_difference": asdict(difference)}
