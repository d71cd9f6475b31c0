"""Instruction tuning (LLaVA stage 2) with QLoRA (Dettmers et al. 2023), LoRA (Hu et al. 2021) or all weights."""

from __future__ import annotations

from pathlib import Path

import transformers
from safetensors.torch import save_file

from vlmflow.errors import UserError
from vlmflow.files import read_manifest
from vlmflow.models.directory import load_processor, load_projector
from vlmflow.training.adapters import load_base, make_trainable
from vlmflow.training.artefact import (
    data_hashes,
    identity,
    input_hashes,
    is_main_process,
    save_example,
    save_projector,
    training_artefact,
)
from vlmflow.training.engine import fit, load_samples, trained_parameters
from vlmflow.training.options import Execution, FinetuneOptions

FULL_WEIGHTS = "language.safetensors"


def train_adapter(
    config: FinetuneOptions,
    model: Path,
    projector: list[Path],
    data: Path,
    execution: Execution,
    checkpoints: Path,
    output: Path,
) -> None:
    """Fine-tune ``model`` (manifest), from the pretrained ``projector`` if one is given, on ``data``
    (manifest of its counted tokens).

    Writes a PEFT directory, the projector and the hash of the base; method ``full`` writes the language model's weights
    in place of the adapter. A killed job resumes from ``checkpoints``.
    """
    pretrained = projector[0] if projector else None
    inputs = input_hashes(model=model, projector=pretrained)
    inputs |= data_hashes(data, inputs["model"])
    if pretrained and read_manifest(pretrained)["base"] != inputs["model"]:
        raise UserError("the projector was trained with another base model", "run snakemake again", file=pretrained)
    transformers.set_seed(config.seed)
    processor = load_processor(model)
    samples = load_samples(data, processor, config)
    base = load_base(model, config)
    if pretrained:
        load_projector(base, pretrained)
    network = make_trainable(base, config)
    facts = fit(
        network, processor, samples, config, execution, checkpoints, identity(config, inputs),
        projector_rate=config.projector_learning_rate,
    )  # fmt: skip
    if is_main_process():
        with training_artefact(output, config, inputs, checkpoints, facts) as directory:
            if config.lora is not None:
                network.peft_config["default"].base_model_name_or_path = str(model.parent)
                network.save_pretrained(directory, save_embedding_layers=False)
                (directory / "README.md").unlink(missing_ok=True)  # peft's empty model card
            else:
                save_file(trained_parameters(network), directory / FULL_WEIGHTS)
            save_projector(network, directory)
            save_example(processor, samples, directory)
