"""Merge what training made into the weights, one tensor at a time, and prove that the result computes the same."""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from vlmflow.errors import UserError
from vlmflow.files import read_manifest, staged_directory, write_manifest
from vlmflow.lora import ADAPTER, LowRank, read_adapter
from vlmflow.merge_check import all_finite, check_logits
from vlmflow.models.directory import copy_side_files
from vlmflow.provenance import write_provenance
from vlmflow.training.adapters import dequantise
from vlmflow.training.options import FinetuneOptions, trained_with
from vlmflow.training.parts import PartWeights, part_file
from vlmflow.weights.checkpoint import Checkpoint
from vlmflow.weights.mapping import SAME, Piece
from vlmflow.weights.skeleton import disk_name, expected_tensors, language_linears, linear_layers
from vlmflow.weights.stream import write_tensors

logger = logging.getLogger(__name__)
_TOLERANCE = 1e-4
"""Largest error of a merged matrix in float32, relative to its output, that rounding explains (measured: 3e-6)."""


def merge_adapter(config: dict[str, Any], model: Path, adapter: Path, output: Path) -> None:
    """Merge the fine-tuning result ``adapter`` over the base ``model`` (manifests); write the manifest ``output``.

    ``config``: ``base``, ``original`` or ``quantized`` (the 4-bit base of QLoRA, de-quantised). An adapter goes over
    the weights that its training started from, the base's or those of a part that pretraining trained. Merging is done
    in float32 and stored in the base's number format. Refused are an adapter of another base, a merge that changes
    nothing, a matrix that computes something else than base plus adapter, and, where the model fits in memory, logits
    that differ from the unmerged ones.
    """
    base_hash, adapter_manifest = read_manifest(model)["hash"], read_manifest(adapter, verify=True)
    if "base" not in adapter_manifest:
        raise UserError("no result of fine-tuning", "name the manifest.json of one", file=adapter)
    if adapter_manifest["base"] != base_hash:
        raise UserError(
            f"trained over base {adapter_manifest['base'][:12]}, not over {base_hash[:12]}",
            "train it again over this base, or name the model that it belongs to",
            file=adapter.parent,
        )
    options = trained_with(adapter.parent / "provenance.json")
    network = AutoConfig.from_pretrained(model.parent, local_files_only=True)
    base = Checkpoint(model.parent)
    quantised = set(language_linears(network)) if config["base"] == "quantized" and options.quantization else set()
    parts, updates = _trained(network, adapter.parent, base, options)
    merging = Merging(parts, updates, quantised, options, adapter.parent)
    pieces = [merging.piece(name) for name in base.kinds]
    with staged_directory(output.parent, model, adapter) as directory:
        write_tensors(base, pieces, directory, expected_tensors(network))
        merging.check_changed()
        copy_side_files(model.parent, directory)
        checks = check_logits(model, adapter, options, bool(quantised), merging.merged, directory)
        inputs = {"model": base_hash, "adapter": adapter_manifest["hash"]}
        write_provenance(
            directory,
            config,
            inputs,
            merged_over="4-bit base, de-quantised" if quantised else "full-precision base",
            trained_over="4-bit base" if options.quantization else "full-precision base",
            **checks,
            largest_matrix_error=merging.largest_error,
            changed_tensors=len(merging.changed),
        )
        write_manifest(directory, merged_from=inputs)
    logger.info("%d tensors changed, %s", len(merging.changed), checks)


class Merging:
    """What becomes of every tensor of a base, and how well it went.

    A weight is the base's or, if its part was trained in full, that of ``parts``; over it goes its adapter in
    ``updates``. Those in ``quantised`` were in 4 bits under their adapters.
    """

    def __init__(
        self,
        parts: PartWeights,
        updates: dict[str, LowRank],
        quantised: set[str],
        options: FinetuneOptions,
        adapter: Path,
    ) -> None:
        self._parts, self._updates, self._quantised = parts, updates, quantised
        self._options, self._adapter = options, adapter
        self.changed: set[str] = set()
        self.largest_error = 0.0

    def piece(self, name: str) -> Piece:
        """The step that makes the merged tensor ``name``; tensors that nothing happens to are copied byte by byte."""
        if name not in self._parts.kinds and name not in self._updates and name not in self._quantised:
            return Piece((name,), (name,), SAME.forward)

        def make(weight: torch.Tensor) -> tuple[torch.Tensor]:
            if not weight.is_meta:  # else asked for its shape alone
                self._merge_into(name, weight)
            return (weight,)

        return Piece((name,), (name,), make)

    def merged(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """The merged tensor in float32, before it is rounded; ``weight`` is the base's."""
        changed, merged = set(self.changed), weight.float()
        self._merge_into(name, merged)
        self.changed = changed  # counts what was stored
        return merged

    def _merge_into(self, name: str, weight: torch.Tensor) -> None:
        """Put the merged values in the place of the base's."""
        base = self._parts.read(name) if name in self._parts.kinds else weight
        if name in self._quantised:
            base = dequantise(base, self._options)
        if name in self._updates:
            take = functools.partial(self._take, name, weight, base)
            self._check(name, self._updates[name].merge_rows(base, take))
        elif name in self._parts.kinds:
            self._take(name, weight, weight, slice(None), base)
        else:
            weight.copy_(base)

    def _take(self, name: str, weight: torch.Tensor, before: torch.Tensor, rows: slice, merged: torch.Tensor) -> None:
        """Store ``merged`` in some rows of ``weight``, which training found with the values ``before``."""
        merged = merged.to(weight.dtype)
        if name not in self.changed and not torch.equal(merged, before[rows].to(weight.dtype)):
            self.changed.add(name)
        if not all_finite(merged):
            reason = f"the merged {name} has values that are no numbers in {str(weight.dtype).removeprefix('torch.')}"
            raise UserError(reason, "train again; a float16 base may be too narrow", file=self._adapter)
        weight[rows] = merged

    def check_changed(self) -> None:
        """Raise :class:`UserError` if fine-tuning changed nothing but the projector, whatever was learnt before it."""
        trained = set(self._updates) or set(self._parts.names(["vision", "language"]))
        if not trained & self.changed:
            raise UserError(
                "merging changed nothing but, perhaps, the projector",
                "the adapter was never trained, or learnt less than the base's number format can hold",
                file=self._adapter,
            )

    def _check(self, name: str, error: float) -> None:
        if error > _TOLERANCE:
            raise UserError(
                f"the merged {name} computes something else than base and adapter: {error:.2g} of its output",
                "do not use the merged weights; report this with the adapter's adapter_config.json",
                file=self._adapter,
            )
        self.largest_error = max(self.largest_error, error)


def _trained(
    network: Any, folder: Path, base: Checkpoint, options: FinetuneOptions
) -> tuple[PartWeights, dict[str, LowRank]]:
    """What was trained in full, and name of a weight of the base -> its adapter. All must find their weights."""
    parts = PartWeights(folder, network)
    shapes = {name: kind.shape for name, kind in base.kinds.items()}
    parts.check(shapes)
    if "projector" not in parts.parts:
        raise UserError("no projector", "train again", file=folder / part_file("projector"))
    if options.lora is None:
        if (folder / ADAPTER).exists():
            raise UserError(f"{ADAPTER} of a training without adapters", "delete what is left over", file=folder)
        if "language" not in parts.parts:
            raise UserError("no language model", "train again", file=folder / part_file("language"))
        return parts, {}
    adapted = read_adapter(folder, [name for name, _ in linear_layers(network)])
    updates = {disk_name(f"{module}.weight", network): update for module, update in adapted.items()}
    head = disk_name("lm_head.weight", network)
    if head in updates and head not in base.kinds:
        raise UserError(
            "the output matrix has an adapter, but it is the embedding's in this model (tie_word_embeddings)",
            "train without an adapter on it",
            file=folder,
        )
    twice = sorted(set(updates) & set(parts.names(["projector"])))
    if twice:
        raise UserError(f"trained twice, by itself and by an adapter: {twice[:3]}", file=folder)
    wrong = [name for name, update in updates.items() if shapes.get(name) != tuple(update.shape)]
    if wrong:
        reason = f"weights of another model: {len(wrong)} have no place in the base, first {wrong[0]}"
        raise UserError(reason, file=folder)
    return parts, updates
