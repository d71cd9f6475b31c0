"""The deployment directory: number format and shard size of choice, checked against the merged model."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from vlmflow.errors import UserError
from vlmflow.files import MANIFEST, read_manifest, staged_directory, write_manifest
from vlmflow.models.directory import load_model, load_processor, save_model
from vlmflow.models.logits import compare_logits, fixture_logits
from vlmflow.provenance import write_provenance

logger = logging.getLogger(__name__)
_AGREEMENT = 0.9
"""Least share of positions whose most likely token survives rounding to 16 bits."""


def convert_model(config: dict[str, Any], model: Path, output: Path) -> None:
    """Write ``model`` (manifest) in another number format (``dtype``) and with files of at most ``max_shard_mb``.

    The written directory is loaded again as a user would; its tensors must have the same names and its logits must
    agree with the source's.
    """
    source = read_manifest(model)
    processor = load_processor(model)
    network = load_model(model, dtype=torch.float32)
    names, reference = set(network.state_dict()), fixture_logits(network, processor)
    with staged_directory(output.parent) as directory:
        network.to(getattr(torch, config["dtype"]))
        save_model(network, processor, directory, max_shard_size=f"{config['max_shard_mb']}MB")
        write_manifest(directory)
        written = load_model(directory / MANIFEST, dtype=torch.float32)
        difference = compare_logits(reference, fixture_logits(written, load_processor(directory / MANIFEST)))
        logger.info("logits, converted against merged: %s", difference)
        if set(written.state_dict()) != names or difference.argmax_agreement < _AGREEMENT:
            raise UserError(
                f"the converted model differs: {difference}", "choose another dtype (bfloat16 keeps float32's range)"
            )
        write_provenance(directory, config, {"model": source["hash"]}, logits_difference=asdict(difference))
        write_manifest(directory, dtype=config["dtype"], converted_from=source["hash"])
