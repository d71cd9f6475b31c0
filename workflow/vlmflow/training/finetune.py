"""Instruction tuning (LLaVA stage 2) with QLoRA (Dettmers et al. 2023), LoRA (Hu et al. 2021) or all weights."""

from __future__ import annotations

from pathlib import Path

import transformers

from vlmflow.errors import UserError
from vlmflow.files import read_manifest
from vlmflow.models.directory import load_processor
from vlmflow.training.adapters import load_base, make_trainable
from vlmflow.training.artefact import (
    data_hashes,
    identity,
    input_hashes,
    restored,
    save_weights,
    trained_weights,
    training_artefact,
)
from vlmflow.training.engine import Places, fit, load_samples, start
from vlmflow.training.example import save_example
from vlmflow.training.features import tower_hash
from vlmflow.training.interrupts import interrupts
from vlmflow.training.options import Execution, FinetuneOptions
from vlmflow.training.state import is_main_process


def train_adapter(
    config: FinetuneOptions,
    model: Path,
    projector: list[Path],
    data: Path,
    execution: Execution,
    checkpoints: Path,
    output: Path,
    features: Path | None = None,
) -> None:
    """Fine-tune ``model`` (manifest), from the pretrained ``projector`` if one is given, on ``data``
    (manifest of its counted tokens).

    Writes a PEFT directory, the projector and the hash of the base; method ``full`` writes the language model's weights
    in place of the adapter. A killed job resumes from ``checkpoints``. ``features`` is the folder where features of a
    frozen vision tower may be kept.
    """
    with interrupts() as asked:
        pretrained = projector[0] if projector else None
        inputs = input_hashes(model=model, projector=pretrained)
        inputs |= data_hashes(data, inputs["model"])
        if pretrained and read_manifest(pretrained)["base"] != inputs["model"]:
            raise UserError("the projector was trained with another base model", "run snakemake again", file=pretrained)
        if restored(output, config, inputs):
            return
        arguments = start(config, execution)
        transformers.set_seed(config.seed)
        processor = load_processor(model)
        samples = load_samples(data, processor, config)
        base = load_base(model, config, pretrained)
        transformers.set_seed(config.seed)  # ZeRO-3 has drawn while it loaded: adapters start alike
        network = make_trainable(base, config)
        trained = fit(
            network, processor, samples, config, execution, arguments, Places(checkpoints, features),
            identity(config, inputs), tower_hash(model, projector), asked,
            projector_rate=config.projector_learning_rate,
        )  # fmt: skip
        weights = trained_weights(network, config)
        if is_main_process():
            with training_artefact(output, config, inputs, trained) as directory:
                save_weights(weights, network, directory, model, pretrained)
                save_example(processor, samples, directory)
