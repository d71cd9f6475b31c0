"""The checkpoints that XTuner leaves behind, with one spelling of the names in them.

Sources (xtuner 0.1.23): ``LLaVAModel.state_dict`` (model/llava.py) keeps ``llm.``, ``visual_encoder.`` and
``projector.``, ``InternVL_V1_5.state_dict`` (model/internvl.py) ``model.language_model.``, ``model.vision_model.`` and
``model.mlp1.``; of an adapted part only what has ``lora_`` in its name, below PEFT's ``base_model.model.``. The folders
of ``xtuner convert pth_to_hf`` are those of ``LLaVAModel.to_xtuner_llava``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vlmflow.convert.pickled import read_training_checkpoint
from vlmflow.errors import UserError
from vlmflow.files import read_json, sha256_file, sha256_json
from vlmflow.weights.checkpoint import Checkpoint
from vlmflow.weights.kinds import Joined, Kind, State, Tensors
from vlmflow.weights.mapping import listed

_NAME = re.compile(
    r"(?:base_model\.model\.|model\.)*?(?P<part>llm|language_model|visual_encoder|vision_model|projector|mlp1)\."
    r"(?:base_model\.model\.)?(?P<rest>.+)"
)
_PARTS = {"llm": "language_model", "visual_encoder": "vision_model"}
_COMPUTED = ("rotary_emb.inv_freq", "embeddings.position_ids")
"""Ends of the names of tables that old releases store and the configuration determines."""
_ADAPTERS = {"llm_adapter": "llm.", "visual_encoder_adapter": "visual_encoder."}
_PLAIN: dict[str, tuple[Any, ...]] = {
    "use_dora": (False,), "use_rslora": (False,), "rank_pattern": ({},), "alpha_pattern": ({},),
    "modules_to_save": (), "bias": ("none",), "fan_in_fan_out": (False,), "layers_to_transform": (),
    "init_lora_weights": (True, False, "gaussian"),
}  # fmt: skip
"""Settings of an adapter that change what it computes, with the values, besides null, that are taken over."""


class Renamed:
    """Tensors of a training run under one spelling of their names: ``language_model.``, ``vision_model.``, and
    ``projector.`` or ``mlp1.``, without the prefixes that wrappers add.

    Raises :class:`UserError` for a name that is none of XTuner's, and for two that are the same.
    """

    def __init__(self, tensors: Tensors, file: Path) -> None:
        self._tensors = tensors
        self._names: dict[str, str] = {}
        strange = []
        for name in tensors.kinds:
            found = _NAME.fullmatch(name)
            if found is None:
                strange.append(name)
            elif not name.endswith(_COMPUTED):
                rest = found["rest"].replace(".default.weight", ".weight")
                own = f"{_PARTS.get(found['part'], found['part'])}.{rest}"
                if own in self._names:
                    raise UserError(f"duplicate tensor: {self._names[own]} and {name} are the same one", file=file)
                self._names[own] = name
        if strange:
            advice = "give what XTuner wrote: a .pth file or directory, or a folder of `xtuner convert pth_to_hf`"
            raise UserError("not a training run of XTuner: " + listed(unexpected=strange), advice, file=file)
        self.kinds: Mapping[str, Kind] = {own: tensors.kinds[name] for own, name in sorted(self._names.items())}

    def read(self, name: str) -> torch.Tensor:
        """The values of a tensor."""
        return self._tensors.read(self._names[name])


def read_xtuner(checkpoint: Path, lora: Mapping[str, Any] | None) -> Renamed:
    """The tensors of a ``.pth`` file or directory, or of the folders of ``pth_to_hf``.

    Folders say with which rank and alpha they were trained: raises :class:`UserError` if ``lora`` says otherwise.
    """
    return Renamed(_tensors(checkpoint, lora), checkpoint)


def _tensors(checkpoint: Path, lora: Mapping[str, Any] | None) -> Tensors:
    if not (checkpoint / "projector").is_dir():
        return State(read_training_checkpoint(checkpoint))
    parts: dict[str, Tensors] = {"projector.": Checkpoint(checkpoint / "projector")}
    keys = {"llm_adapter": ("rank", "alpha"), "visual_encoder_adapter": ("vision_rank", "vision_alpha")}
    for folder, prefix in _ADAPTERS.items():
        if (checkpoint / folder).is_dir():
            _check_settings(checkpoint / folder / "adapter_config.json", lora, *keys[folder])
            files = sorted((checkpoint / folder).glob("adapter_model.*"))
            if len(files) != 1:
                raise UserError(f"{len(files)} files adapter_model.*, not one", file=checkpoint / folder)
            parts[prefix] = Checkpoint(files[0])
    if (checkpoint / "config.json").is_file():  # a language model that was trained in full lies beside the folders
        parts["llm."] = Checkpoint(checkpoint)
    if (checkpoint / "visual_encoder").is_dir():
        parts["visual_encoder."] = Checkpoint(checkpoint / "visual_encoder")
    return Joined(parts)


def _check_settings(file: Path, lora: Mapping[str, Any] | None, rank: str, alpha: str) -> None:
    """An adapter's own settings must be those of the configuration, and otherwise plain."""
    settings = read_json(file)
    for key, plain in _PLAIN.items():
        if settings.get(key) not in (*plain, None):
            raise UserError(f"adapters with {key}: {settings[key]}", "XTuner's own have no such thing", file=file)
    for key, name in ((rank, "r"), (alpha, "lora_alpha")):
        if lora is not None and lora[key] != settings[name]:
            reason = f"{name} is {settings[name]}, the configuration says {lora[key]}"
            raise UserError(reason, f"set lora.{key}: {settings[name]}", file=file, field=f"lora.{key}")


def content_hash(checkpoint: Path) -> str:
    """Identifies what a checkpoint holds."""
    if checkpoint.is_file():
        return sha256_file(checkpoint)
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    return sha256_json({path.relative_to(checkpoint).as_posix(): sha256_file(path) for path in files})
