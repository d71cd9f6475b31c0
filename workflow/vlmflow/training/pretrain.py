"""Projector alignment (LLaVA stage 1, Liu et al. 2023): only the projector learns."""

from __future__ import annotations

from pathlib import Path

import transformers

from vlmflow.models.directory import PROJECTOR, device, load_model, load_processor
from vlmflow.training.artefact import (
    data_hashes,
    identity,
    input_hashes,
    is_main_process,
    save_example,
    save_projector,
    training_artefact,
)
from vlmflow.training.calibrate import calibrate
from vlmflow.training.engine import fit, load_samples
from vlmflow.training.options import Execution, PretrainOptions
from vlmflow.training.precision import compute_dtype


def train_projector(
    config: PretrainOptions, model: Path, data: Path, execution: Execution, checkpoints: Path, output: Path
) -> None:
    """Train the projector of ``model`` (manifest) on ``data`` (manifest of its counted tokens).

    Writes the artefact of manifest ``output``.

    Training state is kept under ``checkpoints`` until the artefact is complete; a killed job resumes from there.
    """
    inputs = input_hashes(model=model)
    inputs |= data_hashes(data, inputs["model"])
    transformers.set_seed(config.seed)
    processor = load_processor(model)
    samples = load_samples(data, processor, config)
    network = load_model(model, dtype=compute_dtype(config.precision))
    network.to(device()).requires_grad_(False)
    network.get_submodule(PROJECTOR).float().requires_grad_(True)
    if config.calibrate:
        calibrate(network, samples, config.calibrate, config.seed)
    facts = fit(network, processor, samples, config, execution, checkpoints, identity(config, inputs))
    if is_main_process():
        with training_artefact(output, config, inputs, checkpoints, facts) as directory:
            save_projector(network, directory)
            save_example(processor, samples, directory)
