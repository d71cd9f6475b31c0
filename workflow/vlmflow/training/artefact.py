"""What a training stage leaves behind: weights, an example of what was seen, manifest and provenance."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError

from vlmflow.errors import UserError
from vlmflow.files import (
    read_json,
    read_manifest,
    sha256_file,
    sha256_json,
    staged_directory,
    write_json,
    write_manifest,
    write_text,
)
from vlmflow.provenance import write_provenance
from vlmflow.training.engine import Trained
from vlmflow.training.metrics import BOARD, METRICS
from vlmflow.training.options import FinetuneOptions, PretrainOptions, TrainingOptions
from vlmflow.training.parts import keep_parts, save_parts, trained_in_full, whole_parts, whole_value
from vlmflow.training.precision import compute_dtype
from vlmflow.training.state import is_main_process, whole_identity

logger = logging.getLogger(__name__)
_FINISHED = ".finished.json"


def input_hashes(**manifests: Path | None) -> dict[str, str]:
    """Name -> content hash of every input that is there."""
    return {name: read_manifest(path)["hash"] for name, path in manifests.items() if path is not None}


def data_hashes(tokens: Path, model: str) -> dict[str, str]:
    """Name -> content hash of the counted records and of the data sets that they come from.

    Raises :class:`UserError` if they were counted for another model than the one with the content hash ``model``.
    """
    manifest = read_manifest(tokens)
    if manifest["model"] != model:
        raise UserError("the tokens were counted for another base model", "run snakemake again", file=tokens)
    datasets = {f"data{index}": dataset["hash"] for index, dataset in enumerate(manifest["datasets"])}
    return {"tokens": manifest["hash"], **datasets}


def identity(options: TrainingOptions, inputs: dict[str, str]) -> dict[str, Any]:
    """What makes a training run this one and no other."""
    return {"options": asdict(options), "inputs": inputs, "dtype": str(compute_dtype(options.precision))}


@contextmanager
def training_artefact(
    output: Path, options: TrainingOptions, inputs: dict[str, str], trained: Trained
) -> Iterator[Path]:
    """The directory beside the manifest ``output``; training state is deleted once it is complete."""
    with staged_directory(output.parent) as directory:
        try:
            yield directory
        except SafetensorError as error:  # what safetensors makes of a full disk
            raise UserError(
                f"the trained weights could not be written: {error}",
                f"make room and run the same command again: what was trained is kept in {trained.state}",
                file=directory,
            ) from error
        shutil.copy(trained.state / METRICS, directory)
        if (trained.state / BOARD).is_dir():
            shutil.copytree(trained.state / BOARD, directory / BOARD)
        write_provenance(directory, asdict(options), inputs, training=trained.facts)
        manifest = write_manifest(directory, base=inputs["model"])
        metrics = (directory / METRICS).read_text(encoding="utf-8")
        run = sha256_json(whole_identity(identity(options, inputs)))
        write_json(directory / _FINISHED, {"run": run, "manifest": manifest, METRICS: metrics})
    shutil.rmtree(trained.state.parent)


def restored(output: Path, options: TrainingOptions, inputs: dict[str, str]) -> bool:
    """Whether the artefact of exactly this run is there, and has been given back what Snakemake deletes.

    A job may end after snakemake itself did: a login node that is restarted, a closed terminal. Snakemake has not seen
    it end, deletes manifest and metrics and starts it again; it must not train for hours again.
    """
    finished = output.parent / _FINISHED
    if not finished.is_file():
        return False
    kept = read_json(finished)
    whole = all(_is_whole(output.parent / name, entry) for name, entry in kept["manifest"]["files"].items())
    if kept["run"] != sha256_json(whole_identity(identity(options, inputs))) or not whole:
        return False
    if is_main_process():
        write_text(output.parent / METRICS, kept[METRICS])
        write_json(output, kept["manifest"])
        logger.info("this training was complete already; delete %s to train anew", output.parent)
    return True


def _is_whole(file: Path, entry: dict[str, Any]) -> bool:
    return file.is_file() and file.stat().st_size == entry["bytes"] and sha256_file(file) == entry["sha256"]


class Weights(NamedTuple):
    """What a stage has trained, on the CPU."""

    parts: dict[str, dict[str, torch.Tensor]]
    """Part -> name -> value, of the parts that are written as a whole."""
    adapter: dict[str, torch.Tensor]
    """Name in the module tree -> value, of the adapters."""


def trained_weights(network: Any, options: PretrainOptions | FinetuneOptions) -> Weights:
    """What a stage has trained. All processes call this together, before the first one writes.

    Fine-tuning always tells the projector, which merging takes from there.
    """
    parts = trained_in_full(options)
    if isinstance(options, FinetuneOptions) and "projector" not in parts:
        parts.append("projector")
    adapter = {name: whole_value(value) for name, value in network.named_parameters() if ".lora_" in name}
    return Weights(whole_parts(network, parts), adapter)


def save_weights(
    weights: Weights, network: Any, directory: Path, model: Path | None = None, pretrained: Path | None = None
) -> None:
    """Write ``weights``: a PEFT directory over ``model`` (manifest) if there are adapters, a file per part.

    What the stage ``pretrained`` (manifest), which the training started from, has trained and this one has not is
    copied, so that the base and this directory are all that merging needs.
    """
    if weights.adapter:
        assert model is not None
        network.peft_config["default"].base_model_name_or_path = str(model.parent)
        network.save_pretrained(directory, state_dict=weights.adapter, save_embedding_layers=False)
        (directory / "README.md").unlink(missing_ok=True)  # peft's empty model card
    save_parts(weights.parts, directory)
    if pretrained is not None:
        keep_parts(pretrained, directory)
