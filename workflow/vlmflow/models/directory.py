"""Complete model directories: what AutoModelForImageTextToText, AutoProcessor and LMDeploy load as it is."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForImageTextToText

from vlmflow.errors import UserError
from vlmflow.files import MANIFEST, MARKER, read_json, read_manifest, write_json
from vlmflow.models.families import family_of_directory
from vlmflow.weights.checkpoint import INDEX

LANGUAGE = "model.language_model"
PROJECTOR = "model.multi_modal_projector"
VISION = "model.vision_tower"
PROJECTOR_FILE = "projector.safetensors"

logging.getLogger("transformers").setLevel(logging.ERROR)
transformers.utils.logging.disable_progress_bar()
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed, which other libraries import, would warn


def load_model(manifest: Path, **options: Any) -> Any:
    """The model beside ``manifest``, in evaluation mode; ``options`` go to ``from_pretrained`` (dtype, quantisation).

    Raises :class:`UserError` when a file is missing, of the wrong size, or a tensor has no value.
    """
    read_manifest(manifest)
    return load_directory(manifest.parent, **options)


def load_directory(folder: Path, **options: Any) -> Any:
    """The model of a directory that has no manifest yet; see :func:`load_model`."""
    model, report = AutoModelForImageTextToText.from_pretrained(
        folder, output_loading_info=True, local_files_only=True, **options
    )
    wrong = {kind: sorted(map(str, names)) for kind, names in report.items() if names}
    if wrong:
        raise UserError(f"the weights do not fit the configuration: {wrong}", file=folder)
    return model.eval()


def copy_side_files(source: Path, target: Path) -> None:
    """Copy all of a model directory but weights, manifest and provenance, unchanged."""
    for path in sorted(source.rglob("*")):
        place = path.relative_to(source)
        made = place.as_posix() in (MANIFEST, MARKER, "provenance.json", INDEX)
        if path.is_file() and not made and path.suffix != ".safetensors":
            (target / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / place)


def load_processor(manifest: Path) -> Any:
    """The processor beside ``manifest``, of the model's family; pictures go through Pillow on all machines."""
    processor = family_of_directory(manifest.parent).load_processor(manifest.parent)
    processor.tokenizer.padding_side = "right"
    return processor


def write_config(config: Any, folder: Path) -> None:
    """Write config.json, with ``architectures`` inside ``text_config`` too: LMDeploy looks for it there."""
    config.save_pretrained(folder)
    content = read_json(folder / "config.json")
    content["text_config"]["architectures"] = config.text_config.architectures
    write_json(folder / "config.json", content)


def set_dtype(config: Any, dtype: torch.dtype) -> None:
    """Name the number format in a model's configuration and in its parts."""
    for part in (config, config.text_config, config.vision_config):
        part.dtype = dtype


def device() -> torch.device:
    """This process's GPU (torchrun numbers them in LOCAL_RANK), or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")
