"""The checkpoints that XTuner leaves behind, with one spelling of the names in them.

Sources (xtuner 0.1.23): ``LLaVAModel.state_dict`` (model/llava.py) keeps ``llm.``, ``visual_encoder.`` and
``projector.``, ``InternVL_V1_5.state_dict`` (model/internvl.py) ``model.language_model.``, ``model.vision_model.`` and
``model.mlp1.``; of an adapted part only what has ``lora_`` in its name, below PEFT's ``base_model.model.``. The folders
of ``xtuner convert pth_to_hf`` are those of ``LLaVAModel.to_xtuner_llava``.
"""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig

from vlmflow.convert.pickled import read_training_checkpoint
from vlmflow.errors import UserError
from vlmflow.files import read_json, sha256_file, sha256_json
from vlmflow.weights.checkpoint import Checkpoint
from vlmflow.weights.kinds import Joined, Kind, State, Tensors
from vlmflow.weights.mapping import listed

logger = logging.getLogger(__name__)
_NAME = re.compile(
    r"(?:base_model\.model\.|model\.)*?(?P<part>llm|language_model|visual_encoder|vision_model|projector|mlp1)\."
    r"(?:base_model\.model\.)?(?P<rest>.+)"
)
_PARTS = {"llm": "language_model", "visual_encoder": "vision_model"}
_COMPUTED = ("rotary_emb.inv_freq", "embeddings.position_ids")
"""Ends of the names of tables that old releases store and the configuration determines."""
_ADAPTERS = {"llm_adapter": "llm.", "visual_encoder_adapter": "visual_encoder."}
_KEYS = {"llm": ("rank", "alpha"), "visual_encoder": ("vision_rank", "vision_alpha")}
"""Which keys of ``lora`` belong to a part."""
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_GIVE = "give what XTuner wrote: a .pth file or directory, or a folder of `xtuner convert pth_to_hf`"
_EXPORT = "run `xtuner convert pth_to_hf` again, or give the .pth file"
_MERGE = "merge the adapter with XTuner first; only plain adapters can be taken over"
_MOST_TEXT = 1_000_000  # characters; XTuner's configurations have some ten thousand
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
            elif ".lora_magnitude" in name:
                raise UserError(f"adapters with use_dora: {name}", _MERGE, file=file)
            elif not name.endswith(_COMPUTED):
                rest = found["rest"].replace(".default.weight", ".weight")
                own = f"{_PARTS.get(found['part'], found['part'])}.{rest}"
                if own in self._names:
                    raise UserError(f"duplicate tensor: {self._names[own]} and {name} are the same one", file=file)
                self._names[own] = name
                if tensors.kinds[name].dtype not in _FLOATS:
                    dtype = str(tensors.kinds[name].dtype).removeprefix("torch.")
                    advice = "give the checkpoint as XTuner wrote it, in bfloat16, float16 or float32"
                    raise UserError(f"{name} has numbers of the format {dtype}", advice, file=file)
        if strange:
            raise UserError("not a training run of XTuner: " + listed(unexpected=strange), _GIVE, file=file)
        self.kinds: Mapping[str, Kind] = {own: tensors.kinds[name] for own, name in sorted(self._names.items())}

    def read(self, name: str) -> torch.Tensor:
        """The values of a tensor."""
        return self._tensors.read(self._names[name])


def read_xtuner(checkpoint: Path, lora: Mapping[str, Any] | None) -> Renamed:
    """The tensors of a ``.pth`` file or directory, or of the folders of ``pth_to_hf``.

    Folders, and files that MMEngine wrote, say with which rank and alpha they were trained: raises :class:`UserError`
    if ``lora`` says otherwise.
    """
    return Renamed(_tensors(checkpoint, lora), checkpoint)


def _tensors(checkpoint: Path, lora: Mapping[str, Any] | None) -> Tensors:
    if any((checkpoint / folder).is_dir() for folder in ("projector", *_ADAPTERS)):
        return _of_folders(checkpoint, lora)
    trained = read_training_checkpoint(checkpoint)
    found = lora_settings(trained.config)
    for part, settings in found.items():
        _check_settings(settings, lora, part, checkpoint, f" ({part}_lora of the configuration that it holds)")
    for part, keys in _KEYS.items():
        if lora is not None and part not in found and lora[keys[0]]:
            told = ", ".join(f"{key}: {lora[key]}" for key in keys)
            logger.info("%s does not say how %s was adapted; taken from the configuration: %s", checkpoint, part, told)
    return State(trained.weights)


def _of_folders(checkpoint: Path, lora: Mapping[str, Any] | None) -> Tensors:
    if not (checkpoint / "projector").is_dir():
        raise UserError("no such folder, but one with an adapter beside it", _EXPORT, file=checkpoint / "projector")
    parts = {"projector.": _checkpoint(checkpoint / "projector")}
    for folder, prefix in _ADAPTERS.items():
        if (checkpoint / folder).is_dir():
            file = checkpoint / folder / "adapter_config.json"
            if not file.is_file():
                raise UserError("no such file, so that alpha is not known", _EXPORT, file=file)
            settings = read_json(file)
            if not isinstance(settings, dict) or None in (settings.get("r"), settings.get("lora_alpha")):
                raise UserError("no settings of an adapter: r and lora_alpha are not there", _EXPORT, file=file)
            _check_settings(settings, lora, prefix.removesuffix("."), file, "")
            files = sorted((checkpoint / folder).glob("adapter_model.*"))
            if len(files) != 1:
                raise UserError(f"{len(files)} files adapter_model.*, not one", _EXPORT, file=checkpoint / folder)
            parts[prefix] = _checkpoint(files[0])
    if (checkpoint / "config.json").is_file():  # a language model that was trained in full lies beside the folders
        parts["llm."] = _checkpoint(checkpoint)
    if (checkpoint / "visual_encoder").is_dir():
        parts["visual_encoder."] = _checkpoint(checkpoint / "visual_encoder")
    return Joined(parts)


def _checkpoint(place: Path) -> Tensors:
    """Weights of a folder of ``pth_to_hf``; an own file of PyTorch is read as strictly as a ``.pth``."""
    file = place / "pytorch_model.bin" if (place / "pytorch_model.bin").is_file() else place
    if file.suffix == ".bin":
        return State(read_training_checkpoint(file).weights)
    try:
        found = Checkpoint(place)
    except OSError as error:  # of a shard that is cut off
        raise UserError(f"cannot be read: {error}", _EXPORT, file=place) from None
    if not found.kinds:
        raise UserError("no tensors in it", _EXPORT, file=place)
    return found


def _check_settings(settings: Mapping[str, Any], lora: Mapping[str, Any] | None, part: str, file: Path,
                    where: str) -> None:  # fmt: skip
    """An adapter's own settings must be those of the configuration, and otherwise plain; unknown ones are None."""
    for key, plain in _PLAIN.items():
        if settings.get(key) and settings[key] not in plain:
            raise UserError(f"adapters with {key}: {settings[key]}{where}", _MERGE, file=file)
    for key, name in zip(_KEYS[part], ("r", "lora_alpha"), strict=True):
        value = settings.get(name)
        if lora is not None and value is not None and lora[key] != value:
            reason = f"{name} is {value}, the configuration says {lora[key]}{where}"
            raise UserError(reason, f"set lora.{key}: {value}", file=file, field=f"lora.{key}")


def lora_settings(text: str) -> dict[str, dict[str, Any]]:
    """Part ("llm", "visual_encoder") -> settings of its adapters, of the text of a configuration of XTuner.

    The text is Python (``Config.pretty_text`` of MMEngine), which is read and never run. A part that is not there has
    no adapters, as far as the text tells; a value that is no literal is None.
    """
    if not text or len(text) > _MOST_TEXT:
        return {}
    try:
        tree = ast.parse(text)
        root: ast.AST = dict(chain.from_iterable(map(_entries, tree.body))).get("model", tree)
        nodes = {name: node for each in ast.walk(root) for name, node in _entries(each)}
        tables = {part: _literals(nodes[f"{part}_lora"]) for part in _KEYS if f"{part}_lora" in nodes}
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        tables = {part: _scanned(text, f"{part}_lora") for part in _KEYS}
    defaults = {name: LoraConfig.__dataclass_fields__[name].default for name in ("r", "lora_alpha")}
    return {part: {**defaults, **table} for part, table in tables.items() if table}


def _entries(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """What a call, a dict or an assignment names."""
    if isinstance(node, ast.Call):
        yield from ((keyword.arg, keyword.value) for keyword in node.keywords if keyword.arg)
    elif isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        yield from ((str(key.value), value) for key, value in pairs if isinstance(key, ast.Constant))
    elif isinstance(node, ast.Assign):
        yield from ((target.id, node.value) for target in node.targets if isinstance(target, ast.Name))


def _literals(node: ast.expr) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in _entries(node):
        try:
            values[name] = ast.literal_eval(value)
        except (ValueError, TypeError):
            values[name] = None
    return values


def _scanned(text: str, name: str) -> dict[str, Any]:
    """The same of text that does not parse: numbers and truth values between the brackets that follow ``name``."""
    text = re.sub(r"#.*", "", text)
    start = re.search(rf"\b{name}['\"]?\s*[=:]\s*(?:\w+\s*)?[({{]", text)
    if start is None:
        return {}
    depth, end = 1, start.end()
    while depth and end < len(text):
        depth += (text[end] in "({[") - (text[end] in ")}]")
        end += 1
    found = re.findall(r"\b(\w+)['\"]?\s*[=:]\s*(\d+|True|False)\b", text[start.end() : end])
    return {key: ast.literal_eval(value) for key, value in found}


def content_hash(checkpoint: Path) -> str:
    """Identifies what a checkpoint holds."""
    if checkpoint.is_file():
        return sha256_file(checkpoint)
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    return sha256_json({path.relative_to(checkpoint).as_posix(): sha256_file(path) for path in files})
