"""The parts of a model that a stage may train in full: projector, vision tower, language model.

A stage writes each of them as one file beside its manifest, ``projector.safetensors``, ``vision.safetensors`` or
``language.safetensors``; whoever loads the stage's result loads all that are there.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.nn import Parameter
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_utils import set_zero3_state

from vlmflow.errors import UserError
from vlmflow.files import read_manifest
from vlmflow.models.directory import LANGUAGE, PROJECTOR, VISION
from vlmflow.training.options import FinetuneOptions, PretrainOptions
from vlmflow.weights.checkpoint import Checkpoint
from vlmflow.weights.kinds import Kind
from vlmflow.weights.skeleton import disk_name, skeleton

_MODULES = {"projector": (PROJECTOR,), "vision": (VISION,), "language": (LANGUAGE, "lm_head")}
PARTS = tuple(_MODULES)
"""In the order in which a picture passes through them; the output matrix belongs to the language model."""


def part_file(part: str) -> str:
    """Name of the file with the weights of a part, beside the manifest of the stage that trained it."""
    return f"{part}.safetensors"


def trained_in_full(options: PretrainOptions | FinetuneOptions) -> list[str]:
    """The parts whose own weights a stage trains, adapters aside."""
    if isinstance(options, PretrainOptions):
        return list(options.train)
    full = options.method == "full"
    learns = {"projector": options.train_projector, "vision": full and options.train_vision, "language": full}
    return [part for part in PARTS if learns[part]]


def check_base(model: Path, trained: Path) -> None:
    """Raise :class:`UserError` unless a training (``trained``) was over this ``model``; both are manifests."""
    base, over = read_manifest(model)["hash"], read_manifest(trained).get("base")
    if over is None:
        raise UserError("no result of a training", "name the manifest.json of one", file=trained)
    if over != base:
        reason = f"trained over base {over[:12]}, not over {base[:12]}"
        raise UserError(reason, "name the model that it belongs to", file=trained.parent)


def train_parts(model: Any, parts: Iterable[str]) -> None:
    """Let ``parts`` of a frozen model learn, in float32.

    What the loss does not depend on stays frozen: LLaVA's projector reads a hidden state of the tower, and no later
    layer would ever have a gradient, for which data parallelism would wait. With ZeRO-3, whose weights are spread over
    the processes already, DeepSpeed keeps the float32 values.
    """
    parts = list(parts)
    unused = unused_vision(model.config) if "vision" in parts else set()
    for part in parts:
        for name in _MODULES[part]:
            module = model.get_submodule(name)
            if not is_deepspeed_zero3_enabled():
                module.float()
            module.requires_grad_(True)
    for name, parameter in model.named_parameters():
        if name in unused:
            parameter.requires_grad_(False)


def unused_vision(config: Any) -> set[str]:
    """Names of the vision tower's parameters that what the projector reads does not depend on."""
    with set_zero3_state():  # else DeepSpeed spreads this copy, which has no values, too
        twin = skeleton(config)
    read: list[torch.Tensor] = []
    twin.get_submodule(PROJECTOR).register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    side = config.vision_config.image_size
    height, width = (side, side) if isinstance(side, int) else side
    with torch.enable_grad():
        twin.model.get_image_features(torch.empty(1, 3, height, width, device="meta"))
        named = [(name, parameter) for name, parameter in twin.named_parameters() if name.startswith(VISION)]
        gradients = torch.autograd.grad(read[0].sum(), [parameter for _, parameter in named], allow_unused=True)
    return {name for (name, _), gradient in zip(named, gradients, strict=True) if gradient is None}


def whole_parts(model: Any, parts: Iterable[str]) -> dict[str, dict[str, torch.Tensor]]:
    """Part -> name -> value of every tensor of ``parts``, on the CPU, whatever processes the values are spread over.

    All processes call this together. ``model`` may have adapters, on none of ``parts``. The projector's names are those
    that its own module uses, the others' those of the module tree; a tied output matrix is not there.
    """
    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    found: dict[str, dict[str, torch.Tensor]] = {part: {} for part in parts}
    for name, parameter in core.named_parameters():
        part = _part_of(name)
        if part in found:
            found[part][_own_name(name)] = whole_value(parameter)
    return found


def whole_value(parameter: Parameter) -> torch.Tensor:
    """A copy of the value on the CPU; all processes call this together. float32 where DeepSpeed trains it.

    DeepSpeed keeps the trained values in float32 apart from the model's, in parts on all processes.
    """
    if not hasattr(parameter, "ds_id") and not hasattr(parameter, "_hp_mapping"):
        return parameter.detach().cpu().clone(memory_format=torch.contiguous_format)
    from deepspeed.utils import safe_get_full_fp32_param

    if parameter.requires_grad:
        value: torch.Tensor = safe_get_full_fp32_param(parameter)
        return value.detach().cpu().contiguous()
    with _gathered(parameter, changed=False):
        return parameter.detach().cpu().clone(memory_format=torch.contiguous_format)


def save_parts(weights: Mapping[str, Mapping[str, torch.Tensor]], directory: Path) -> None:
    """Write what :func:`whole_parts` gave, one file per part."""
    for part, state in weights.items():
        save_file(dict(state), directory / part_file(part))


def keep_parts(pretrained: Path, directory: Path) -> None:
    """Copy to ``directory`` the weights that the stage of manifest ``pretrained`` trained and that are not there yet.

    So a result of fine-tuning holds, with its base, all that it is made of.
    """
    for part in PARTS:
        source, target = pretrained.parent / part_file(part), directory / part_file(part)
        if source.is_file() and not target.exists():
            shutil.copyfile(source, target)


def load_parts(model: Any, manifest: Path) -> None:
    """Replace the weights of ``model`` by all that the stage of ``manifest`` has trained in full.

    Raises :class:`UserError` if there are none, or if they are of another model. Layers in 4 bits are quantised anew.
    """
    read_manifest(manifest)
    weights = PartWeights(manifest.parent, model.config)
    if not weights.parts:
        files = ", ".join(map(part_file, PARTS))
        raise UserError(f"none of {files}", "name the manifest.json of a training stage", file=manifest)
    parameters = {disk_name(name, model.config): (name, parameter) for name, parameter in model.named_parameters()}
    weights.check({name: _shape(parameter) for name, (_, parameter) in parameters.items()})
    for name in weights.kinds:
        place, parameter = parameters[name]
        _replace(model, place, parameter, weights, name)


@torch.no_grad()
def _replace(model: Any, place: str, parameter: Parameter, weights: PartWeights, name: str) -> None:
    if hasattr(parameter, "quant_state"):
        layer, _, attribute = place.rpartition(".")
        module = model.get_submodule(layer)
        value = weights.read(name).to(module.compute_dtype)
        setattr(module, attribute, _quantised_like(parameter, value))
        return
    with _gathered(parameter, changed=True) if hasattr(parameter, "ds_id") else nullcontext():
        parameter.copy_(weights.read(name))


def _quantised_like(parameter: Any, value: torch.Tensor) -> Any:
    """``value`` as bitsandbytes' loader would have stored it in the place of ``parameter``."""
    fresh = type(parameter)(
        value,
        requires_grad=False,
        blocksize=parameter.blocksize,
        compress_statistics=parameter.compress_statistics,
        quant_type=parameter.quant_type,
        quant_storage=parameter.quant_storage,
        module=parameter.module,
    )
    return fresh.to(parameter.device)


def _shape(parameter: Any) -> tuple[int, ...]:
    """That of the weight, also where it is packed into 4 bits or spread over processes."""
    if hasattr(parameter, "quant_state"):
        return tuple(parameter.quant_state.shape)
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _gathered(parameter: Parameter, changed: bool) -> Any:
    """While this lasts, ``parameter`` has its whole value; what the first process has ``changed`` stays."""
    from deepspeed import zero

    return zero.GatheredParameters([parameter], modifier_rank=0 if changed else None)


class PartWeights:
    """The tensors of all parts in a folder, under the names that a model directory's files have for them.

    Their values are read when they are needed. ``config`` is the model's.
    """

    def __init__(self, folder: Path, config: Any) -> None:
        self._places: dict[str, tuple[Checkpoint, str]] = {}
        self._parts: dict[str, str] = {}
        self._config = config
        for part in PARTS:
            if (folder / part_file(part)).is_file():
                self._add(part, Checkpoint(folder / part_file(part)))
        self.kinds: dict[str, Kind] = {name: file.kinds[own] for name, (file, own) in self._places.items()}

    def _add(self, part: str, checkpoint: Checkpoint) -> None:
        for own in checkpoint.kinds:
            name = f"{PROJECTOR}.{own}" if part == "projector" else own
            stored = disk_name(name, self._config)
            if stored in self._places:
                raise UserError(f"{name} is in two files", "train again", file=checkpoint.path)
            self._places[stored], self._parts[stored] = (checkpoint, own), _part_of(name)

    @property
    def parts(self) -> list[str]:
        """The parts that there are weights of."""
        return [part for part in PARTS if part in self._parts.values()]

    def names(self, parts: Sequence[str]) -> Iterator[str]:
        """The tensors of ``parts``."""
        return (name for name in self.kinds if self._parts[name] in parts)

    def read(self, name: str) -> torch.Tensor:
        """The tensor, read from its file."""
        file, own = self._places[name]
        return file.read(own)

    def check(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        """Raise :class:`UserError` unless each part is whole and fits ``expected``, name -> shape of a whole model."""
        for part in self.parts:
            file = self._places[next(self.names([part]))][0].path
            prefixes = tuple(disk_name(f"{module}.", self._config) for module in _MODULES[part])
            wanted = {name: shape for name, shape in expected.items() if name.startswith(prefixes)}
            found = {name: self.kinds[name].shape for name in self.names([part])}
            different = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
            if different:
                what = {"projector": "projector", "vision": "vision tower", "language": "language model"}[part]
                reason = f"the {what} belongs to another model: {len(different)} tensors differ, first {different[0]}"
                raise UserError(reason, "train it again over this base", file=file)
            integers = [name for name in found if not self.kinds[name].dtype.is_floating_point]
            if integers:
                raise UserError(f"no floating-point numbers: {integers[:3]}", "train again", file=file)


def _part_of(name: str) -> str:
    """The part that a parameter belongs to, by its name in the module tree."""
    for part, modules in _MODULES.items():
        if name.startswith(tuple(f"{module}." for module in modules)):
            return part
    raise UserError(f"{name} is in no part of a vision-language model", "is it of another kind of model?")


def _own_name(name: str) -> str:
    return name.removeprefix(f"{PROJECTOR}.")
