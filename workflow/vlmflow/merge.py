"""Merge adapter and projector into the weights, and prove that the result computes the same."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file

from vlmflow.errors import UserError
from vlmflow.files import read_json, read_manifest, staged_directory, write_manifest
from vlmflow.models.directory import PROJECTOR, load_model, load_processor, load_projector, save_model
from vlmflow.models.logits import LogitsDifference, compare_logits, fixture_logits
from vlmflow.provenance import write_provenance
from vlmflow.training.adapters import dequantised_weights, load_base
from vlmflow.training.finetune import FULL_WEIGHTS
from vlmflow.training.options import FinetuneOptions

logger = logging.getLogger(__name__)
_TOLERANCE = 1e-3
"""Largest difference of float32 logits, relative to the largest logit, that rounding explains (measured: 1e-5)."""


def merge_adapter(config: dict[str, Any], model: Path, adapter: Path, output: Path) -> None:
    """Merge the fine-tuning result ``adapter`` over the base ``model`` (manifests); write the manifest ``output``.

    ``config``: ``base``, ``original`` or ``quantized`` (the 4-bit base of QLoRA, de-quantised). Merging is done in
    float32 and stored in the base's number format. Refused are an adapter of another base, a merge that changes
    nothing, a tensor that changed without being trained, and logits that differ from the unmerged ones.
    """
    base_hash, adapter_manifest = read_manifest(model)["hash"], read_manifest(adapter)
    if adapter_manifest["base"] != base_hash:
        raise UserError(
            f"trained over base {adapter_manifest['base'][:12]}, not over {base_hash[:12]}",
            "train it again over this base, or name the model that it belongs to",
            file=adapter.parent,
        )
    options = FinetuneOptions(**read_json(adapter.parent / "provenance.json")["config"])
    processor = load_processor(model)
    network = load_model(model, dtype=torch.float32)
    if config["base"] == "quantized" and options.quantization is not None:
        network.load_state_dict(dequantised_weights(load_base(model, options)), strict=False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network, expected = _apply(network, adapter)
    unmerged = fixture_logits(network, processor)
    merged = network.merge_and_unload() if isinstance(network, PeftModel) else network
    logits = fixture_logits(merged, processor)
    difference = compare_logits(unmerged, logits)
    logger.info("logits, merged against unmerged: %s", difference)
    _check(difference, adapter)
    changed = _changed(before, merged.state_dict(), expected, adapter)
    gap = _gap(model, adapter, options, processor, logits)
    stored = merged.to(getattr(torch, read_json(model.parent / "config.json")["dtype"]))
    with staged_directory(output.parent) as directory:
        save_model(stored, processor, directory)
        inputs = {"model": base_hash, "adapter": adapter_manifest["hash"]}
        write_provenance(
            directory,
            config,
            inputs,
            logits_merged_against_unmerged=asdict(difference),
            logits_merged_against_trained=asdict(gap) if gap else None,
            changed_tensors=len(changed),
        )
        write_manifest(directory, merged_from=inputs)


def _apply(network: Any, adapter: Path) -> tuple[Any, set[str]]:
    """The network with the trained weights in use, and the names of the base's tensors that merging may change."""
    load_projector(network, adapter)
    projector = {name for name in network.state_dict() if name.startswith(PROJECTOR)}
    full = adapter.parent / FULL_WEIGHTS
    if full.is_file():
        state = load_file(full)
        unexpected = network.load_state_dict(state, strict=False).unexpected_keys
        if unexpected:
            raise UserError(f"weights of another model: {unexpected[:3]}", file=full)
        return network, {*state, "lm_head.weight"} | projector  # the output matrix may be tied to the embedding
    wrapped = PeftModel.from_pretrained(network, adapter.parent)
    marker = ".lora_A.default.weight"
    adapted = {name.removesuffix(marker) for name in wrapped.state_dict() if name.endswith(marker)}
    return wrapped.eval(), {name.removeprefix("base_model.model.") + ".weight" for name in adapted} | projector


def _check(difference: LogitsDifference, adapter: Path) -> None:
    if not difference.max_abs <= _TOLERANCE * difference.scale:  # also catches NaN
        raise UserError(
            f"the merged model computes something else: logits differ by up to {difference.max_abs:.3g}",
            "do not use the merged weights; report this with the adapter's adapter_config.json",
            file=adapter.parent,
        )


def _changed(
    before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], expected: set[str], adapter: Path
) -> set[str]:
    """Names of the tensors that merging changed; all of them must have been trained, and there must be some."""
    if set(before) != set(after):
        raise UserError(f"tensors appeared or vanished: {sorted(set(before) ^ set(after))[:5]}", file=adapter.parent)
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    if not changed:
        raise UserError("merging changed nothing", "the adapter is empty or was never trained", file=adapter.parent)
    if changed - expected:
        raise UserError(f"tensors changed without being trained: {sorted(changed - expected)[:5]}", file=adapter.parent)
    return changed


def _gap(
    model: Path, adapter: Path, options: FinetuneOptions, processor: Any, merged: list[torch.Tensor]
) -> LogitsDifference | None:
    """How far the merged model is from the one that was trained, adapter over the 4-bit base; None without one."""
    if options.quantization is None:
        return None
    trained, _ = _apply(load_base(model, options), adapter)
    gap = compare_logits(fixture_logits(trained, processor), merged)
    logger.info("logits, merged against the 4-bit model that was trained: %s", gap)
    return gap
