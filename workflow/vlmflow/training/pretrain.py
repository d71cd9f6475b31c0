"""Projector alignment (LLaVA stage 1, Liu et al. 2023): the projector learns, or whatever ``train`` says."""

from __future__ import annotations

from pathlib import Path

import transformers

from vlmflow.models.directory import load_processor
from vlmflow.training.adapters import load_base
from vlmflow.training.artefact import (
    data_hashes,
    identity,
    input_hashes,
    restored,
    save_weights,
    trained_weights,
    training_artefact,
)
from vlmflow.training.calibrate import calibrate
from vlmflow.training.engine import Places, fit, load_samples, start
from vlmflow.training.example import save_example
from vlmflow.training.features import tower_hash
from vlmflow.training.interrupts import interrupts
from vlmflow.training.options import Execution, PretrainOptions
from vlmflow.training.parts import train_parts
from vlmflow.training.state import is_main_process


def train_projector(
    config: PretrainOptions,
    model: Path,
    data: Path,
    execution: Execution,
    checkpoints: Path,
    output: Path,
    features: Path | None = None,
) -> None:
    """Train the projector (or the parts that ``train`` names) of ``model`` (manifest) on ``data`` (manifest of its
    counted tokens). Writes the artefact of manifest ``output``.

    Training state is kept under ``checkpoints`` until the artefact is complete; a killed job resumes from there.
    ``features`` is the folder where features of a frozen vision tower may be kept.
    """
    with interrupts() as asked:
        inputs = input_hashes(model=model)
        inputs |= data_hashes(data, inputs["model"])
        if restored(output, config, inputs):
            return
        arguments = start(config, execution)
        transformers.set_seed(config.seed)
        processor = load_processor(model)
        samples = load_samples(data, processor, config)
        network = load_base(model, config)
        network.requires_grad_(False)
        train_parts(network, config.train)
        if config.calibrate:
            calibrate(network, samples, config.calibrate, config.seed)
        trained = fit(
            network, processor, samples, config, execution, arguments, Places(checkpoints, features),
            identity(config, inputs), tower_hash(model), asked,
        )  # fmt: skip
        weights = trained_weights(network, config)
        if is_main_process():
            with training_artefact(output, config, inputs, trained) as directory:
                save_weights(weights, network, directory)
                save_example(processor, samples, directory)
