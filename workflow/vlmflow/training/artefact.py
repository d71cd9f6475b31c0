"""What a training stage leaves behind: weights, an example of what was seen, manifest and provenance."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from vlmflow.errors import UserError
from vlmflow.files import read_manifest, staged_directory, write_json, write_manifest
from vlmflow.models.directory import PROJECTOR, PROJECTOR_FILE
from vlmflow.models.template import IGNORED
from vlmflow.provenance import write_provenance
from vlmflow.training.options import TrainingOptions
from vlmflow.training.samples import Samples


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
    return {"options": asdict(options), "inputs": inputs}


def is_main_process() -> bool:
    """One process of a multi-GPU run writes."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def training_artefact(
    output: Path, options: TrainingOptions, inputs: dict[str, str], checkpoints: Path, facts: dict[str, Any]
) -> Iterator[Path]:
    """The directory beside the manifest ``output``; training state is deleted once it is complete."""
    with staged_directory(output.parent) as directory:
        yield directory
        shutil.copy(checkpoints / "metrics.jsonl", directory)
        write_provenance(directory, asdict(options), inputs, training=facts)
        write_manifest(directory, base=inputs["model"])
    shutil.rmtree(checkpoints)


def save_projector(model: Any, directory: Path) -> None:
    """``projector.safetensors``, with the names that the projector module itself uses."""
    projector = next(module for name, module in model.named_modules() if name.endswith(PROJECTOR.split(".")[-1]))
    state = {name: value.detach().cpu().contiguous() for name, value in projector.state_dict().items()}
    save_file(state, directory / PROJECTOR_FILE)


def save_example(processor: Any, samples: Samples, directory: Path) -> None:
    """``example.json``: the first sample as the model sees it, to be looked at before trusting a run."""
    dataset, index = samples.place(0)
    record = samples.records[dataset][index]
    sample = samples.sample(dataset, index)
    ids, labels = sample["input_ids"].tolist(), sample["labels"].tolist()
    write_json(
        directory / "example.json",
        {
            "id": record.id,
            "images": [image.path for image in record.images],
            "text": processor.tokenizer.decode(ids),
            "supervised": processor.tokenizer.decode([label for label in labels if label != IGNORED]),
            "tokens": len(ids),
            "supervised_tokens": sum(label != IGNORED for label in labels),
        },
    )
