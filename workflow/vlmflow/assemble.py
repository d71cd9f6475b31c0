"""A base model with what pretraining made of it, as a model directory of its own."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig

from vlmflow.errors import UserError
from vlmflow.files import read_manifest, staged_directory, write_manifest
from vlmflow.models.directory import copy_side_files
from vlmflow.provenance import write_provenance
from vlmflow.training.parts import PartWeights, check_base
from vlmflow.weights.checkpoint import Checkpoint
from vlmflow.weights.mapping import SAME, Piece
from vlmflow.weights.skeleton import expected_tensors
from vlmflow.weights.stream import write_tensors


def assemble_pretrained(model: Path, pretrained: Path, output: Path) -> None:
    """Write ``model`` with the parts that ``pretrained`` trained in the place of its own (all are manifests).

    They are stored in the model's number format. Raises :class:`UserError` for parts of another model.
    """
    check_base(model, pretrained)
    inputs = {"model": read_manifest(model)["hash"], "pretrained": read_manifest(pretrained, verify=True)["hash"]}
    network, base = AutoConfig.from_pretrained(model.parent, local_files_only=True), Checkpoint(model.parent)
    parts = PartWeights(pretrained.parent, network)
    if not parts.parts:
        raise UserError("no weights of a pretraining", "name the manifest.json of one", file=pretrained)
    parts.check({name: kind.shape for name, kind in base.kinds.items()})
    pieces = [_piece(name, parts) for name in base.kinds]
    with staged_directory(output.parent, model, pretrained) as directory:
        write_tensors(base, pieces, directory, expected_tensors(network))
        copy_side_files(model.parent, directory)
        write_provenance(directory, {}, inputs, parts=parts.parts)
        write_manifest(directory, assembled_from=inputs)


def _piece(name: str, parts: PartWeights) -> Piece:
    """The tensor of ``parts`` if it is there, else the base's."""

    def take(weight: torch.Tensor) -> tuple[torch.Tensor]:
        return (weight if weight.is_meta else parts.read(name).to(weight.dtype),)

    return Piece((name,), (name,), take if name in parts.kinds else SAME.forward)
