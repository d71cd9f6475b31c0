"""Make a base model: a complete model directory from separate parts, or from a whole checkpoint in any layout."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from vlmflow.convert import internvl, llava
from vlmflow.convert.layout import checking, naming
from vlmflow.errors import UserError
from vlmflow.files import sha256_file, staged_directory, write_manifest
from vlmflow.fingerprint import fingerprint
from vlmflow.housekeeping.store import content_of, shared
from vlmflow.models.directory import PROJECTOR, set_dtype
from vlmflow.models.language import Language, language_part, own_template
from vlmflow.models.llava_directory import (
    TABLE,
    add_placeholder,
    check_layer,
    extended,
    llava_config,
    padded_rows,
    prefixed,
    source_of,
    write_small_files,
)
from vlmflow.models.native import copy_native, is_native
from vlmflow.models.parts import config_of, expected_of
from vlmflow.models.published import check_published
from vlmflow.models.tower import Tower, vision_part
from vlmflow.provenance import write_provenance
from vlmflow.weights.kinds import Joined, State
from vlmflow.weights.mapping import Rule, plan
from vlmflow.weights.skeleton import skeleton
from vlmflow.weights.stream import write_tensors

logger = logging.getLogger(__name__)
_PARTS = ("language", "vision", "checkpoint")
_PACKAGES = ("torch", "transformers", "tokenizers")
_HASHED = ("*.safetensors", "*.bin", "*.json", "*.model", "*.jinja")


def build_model(config: dict[str, Any], output: Path, store: Path | None = None) -> None:
    """Write the model directory of a ``models`` node; ``output`` is its manifest.

    ``config``: family; language and vision, or checkpoint (paths); template, max_tiles, dtype (None: the checkpoint's
    own); image_size, feature_layer and seed for a model from parts. No model is held in memory as a whole, but for
    GGUF and ONNX files. Raises :class:`UserError` before a weight is written if parts or files do not fit. Models are
    shared with other workflows through the folder ``store``.
    """
    builders: dict[str, Callable[[dict[str, Any], Path], dict[str, Any]]] = {"llava": _llava, "internvl": _internvl}
    if config["family"] not in builders:
        raise UserError(f"no model family '{config['family']}'", f"there is {', '.join(builders)}", field="family")
    _check_unused(config)
    parts = {part: Path(config[part]) for part in _PARTS if config.get(part)}
    for part, place in parts.items() if config.get("published") else ():
        check_published(config["published"], part, place)
    key = {} if store is None else _key(config, parts)
    build = functools.partial(_build, builders[config["family"]], config, list(parts.values()), output)
    shared(store, "models", key, output, build)


def _key(config: dict[str, Any], parts: dict[str, Path]) -> dict[str, Any]:
    """All that a model depends on: content in the place of paths."""
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    content = {part: content_of(place) for part, place in parts.items()}
    return {"config": {**config, **content}, "code": fingerprint(Path(__file__)), "versions": versions}


def _build(
    builder: Callable[[dict[str, Any], Path], dict[str, Any]],
    config: dict[str, Any],
    places: list[Path],
    output: Path,
) -> None:
    with staged_directory(output.parent, *places) as directory:
        facts = builder(config, directory)
        logger.info("%s", facts)
        write_provenance(directory, config, {str(place): _content_hash(place) for place in places}, **facts)
        write_manifest(directory, family=config["family"], template=facts["template"])


def _check_unused(config: dict[str, Any]) -> None:
    """Raise :class:`UserError` for what a node says and nothing would read."""
    llava_family, whole = config["family"] == "llava", bool(config.get("checkpoint"))
    if llava_family:
        _refuse(config, "max_tiles", "a LLaVA sees a picture as one tile")
    if whole:
        _refuse(config, "image_size", "a complete checkpoint keeps the picture size it was trained with")
        _refuse(config, "language", "a complete checkpoint holds its language model")
    if whole and not llava_family:
        _refuse(config, "vision", "a complete checkpoint holds its tower")


def _refuse(config: dict[str, Any], key: str, why: str) -> None:
    if config.get(key) is not None:
        raise UserError(f"unused setting: {why}", f"leave out `{key}`", field=key)


def _internvl(config: dict[str, Any], directory: Path) -> dict[str, Any]:
    folder = _place(config, "checkpoint")
    dtype, options = _dtype(config), {"template": config["template"], "max_tiles": config.get("max_tiles")}
    if is_native(config_of(folder), "internvl"):
        return copy_native(folder, directory, "internvl", dtype=dtype, **options)
    return internvl.to_native(folder, directory, dtype=dtype, **options)


def _llava(config: dict[str, Any], directory: Path) -> dict[str, Any]:
    if not config.get("checkpoint"):
        language = language_part(_place(config, "language"))
        return _from_parts(language, vision_part(_place(config, "vision"), config["image_size"]), config, directory)
    folder, dtype = _place(config, "checkpoint"), _dtype(config)
    if is_native(config_of(folder), "llava"):
        _refuse(config, "vision", "a checkpoint in transformers' layout holds its tower")
        return copy_native(folder, directory, "llava", template=config["template"], dtype=dtype)
    vision = _place(config, "vision") if config.get("vision") else None
    return llava.to_native(folder, directory, template=config["template"], dtype=dtype, vision=vision)


def _from_parts(language: Language, tower: Tower, config: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Language model and tower around a new projector; the language model's number format is the whole model's."""
    place = Path(config["language"])
    with naming(place):
        template = config["template"] or own_template(language.model_type, language.config, language.tokenizer)
        add_placeholder(language.tokenizer, template)
        rows, more = language.config.vocab_size, padded_rows(language.tokenizer, language.config.vocab_size)
        dtype = _dtype(config) or _dtype_of_table(language)
    check_layer(config["feature_layer"], tower.config)
    with checking("broken configuration", place):
        model = llava_config(language.config, tower.config, language.tokenizer, config["feature_layer"])
    set_dtype(model, dtype)
    rules = [
        *prefixed(extended(language.rules, rows, more, dtype), "language.", "language_model."),
        *prefixed(tower.rules, "vision.", ""),
        Rule(("projector.**",), ("multi_modal_projector.**",)),
    ]
    expected = expected_of(model, place)
    projector = _new_projector(model, config["seed"], grown=more > rows)
    parts = {"language.": language.tensors, "vision.": tower.tensors, "projector.": projector}
    tensors = Joined(parts)
    with _placing(config):
        kinds = write_tensors(tensors, plan(rules, tensors.kinds), directory, expected, dtype=dtype)
    with naming(place):
        write_small_files(model, language.tokenizer, language.generation, directory, pictures=tower.pictures)
    return {"template": template, "tensors": len(kinds), "bytes": sum(kind.nbytes for kind in kinds.values())}


@contextmanager
def _placing(config: dict[str, Any]) -> Iterator[None]:
    """Errors about tensors name the part that these are of."""
    try:
        yield
    except UserError as error:
        known = error.problem
        part = "language" if "language" in known.reason or "vision" not in known.reason else "vision"
        raise UserError(known.reason, known.advice, file=known.file or config[part], field=known.field) from None


def _new_projector(model: Any, seed: int, grown: bool) -> State:
    """The untrained projector (float32); ``grown``: the vocabulary got more rows.

    Before, transformers enlarged the vocabulary tables after seeding, which draws each of them twice. As many numbers
    are passed over here, so that a seed means the same projector as ever.
    """
    projector = skeleton(model).get_submodule(PROJECTOR).float().to_empty(device="cpu")
    torch.manual_seed(seed)
    if grown:
        tables = 1 if model.tie_word_embeddings else 2
        for _ in range(2 * tables * model.text_config.vocab_size):
            torch.rand(model.text_config.hidden_size)
    for layer in (projector.linear_1, projector.linear_2):
        layer.reset_parameters()
    return State(projector.state_dict())


def _dtype_of_table(language: Language) -> torch.dtype:
    """Number format of the embedding table."""
    name = source_of(language.rules, TABLE)
    if name not in language.tensors.kinds:
        raise UserError(f"missing tensor {name}: these are not the weights of a causal language model")
    dtype = language.tensors.kinds[name].dtype
    if not dtype.is_floating_point:
        raise UserError(f"quantised tensor {name} ({dtype})", "use the checkpoint that is not quantised")
    return dtype


def _dtype(config: dict[str, Any]) -> torch.dtype | None:
    dtype: torch.dtype | None = config["dtype"] and getattr(torch, config["dtype"])
    return dtype


def _place(config: dict[str, Any], part: str) -> Path:
    """The folder or file of a part that must be there."""
    if not config.get(part):
        lacking = f"a model of family {config['family']} needs `{part}`"
        raise UserError(f"missing part: {lacking}", "give its path or source", field=part)
    place = Path(config[part])
    if not place.exists():
        raise UserError(f"missing part: the {part} is not there", file=place, field=part)
    return place


def _content_hash(path: Path) -> str:
    """SHA-256 of a file, or of the weights, configuration and tokenizer of a directory."""
    if path.is_file():
        return sha256_file(path)
    files = sorted(file for pattern in _HASHED for file in path.glob(pattern))
    return hashlib.sha256("".join(sha256_file(file) for file in files).encode()).hexdigest()
