"""What conversions between layouts share: files beside the weights, shapes of a result, figures for provenance."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import GenerationConfig

from vlmflow.errors import UserError
from vlmflow.files import MANIFEST
from vlmflow.weights.kinds import Kind
from vlmflow.weights.mapping import Piece

OFFICIAL = "official"
"""Folder in a model directory that keeps the files, other than weights, which the official one came with."""
RECORD = "vlmflow.json"
"""File beside the official ones that holds what a conversion must know to be undone."""
_BROKEN = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, StrictDataclassError)
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
_WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack"}
_OURS = {MANIFEST, "provenance.json", RECORD}


def official_source(folder: Path, given: Path | None) -> Path:
    """Where the official files of the model directory ``folder`` are: in ``given``, or kept in the directory itself."""
    source = given or folder / OFFICIAL
    if not (source / "config.json").is_file():
        raise UserError(
            "missing files: the official ones (config.json, *.py, tokenizer) are not kept in this model",
            "name the official directory that the model was made from",
            file=source,
        )
    return source


def refuse_different(keys: Sequence[str], folder: Path) -> None:
    """Raise :class:`UserError` if the model in ``folder`` and its official files disagree about any of these keys."""
    if keys:
        raise UserError(
            f"wrong files: the model differs from its official files in {', '.join(keys)}",
            "name the official directory that the model was made from",
            file=folder / "config.json",
        )


def copy_files(source: Path, target: Path) -> None:
    """Copy the files of a directory that are neither weights nor ours, unchanged."""
    target.mkdir(exist_ok=True)
    for file in sorted(source.iterdir()):
        weights = file.suffix in _WEIGHT_SUFFIXES or file.name.endswith(".index.json")
        if file.is_file() and not weights and not file.name.startswith(".") and file.name not in _OURS:
            shutil.copyfile(file, target / file.name)


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """Errors that name no file get this one."""
    try:
        yield
    except UserError as error:
        known = error.problem
        if known.file is not None:
            raise
        raise UserError(known.reason, known.advice, file=file, record=known.record, field=known.field) from None


@contextmanager
def checking(what: str, file: Path | None = None) -> Iterator[None]:
    """What a library says of content that it cannot use becomes a :class:`UserError`: ``what``, then its words.

    To be put around calls that work on good content only; errors of torch about sizes are such too.
    """
    try:
        yield
    except _BROKEN as error:
        words = " ".join(str(error).split())[:300]
        raise UserError(f"{what}: {type(error).__name__}: {words}", file=file) from None


def generation_settings(given: Any, file: Path, **ours: Any) -> GenerationConfig:
    """The content of a generation_config.json with ``ours`` in it.

    Settings for sampling that is switched off are left out. Raises :class:`UserError`, which names ``file``, for others
    that transformers would refuse to write.
    """
    if not isinstance(given, dict):
        raise UserError("broken generation settings: no JSON object", file=file)
    unused = () if given.get("do_sample") else _SAMPLING
    kept = {key: value for key, value in given.items() if key not in ("transformers_version", *unused)}
    with checking("broken generation settings", file):
        made = GenerationConfig(**{**kept, **ours})
        made.validate(strict=True)
    return made


def made_shapes(pieces: Sequence[Piece], kinds: Mapping[str, Kind]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of what the pieces make of tensors like these."""
    shapes = {}
    for piece in pieces:
        made = piece.make(*(torch.empty(kinds[name].shape, device="meta") for name in piece.sources))
        shapes.update({name: tuple(value.shape) for name, value in zip(piece.targets, made, strict=True)})
    return shapes


def main_dtype(kinds: Mapping[str, Kind]) -> torch.dtype:
    """The number format that most of the bytes are in."""
    sizes = _sizes(kinds)
    return max(sizes, key=lambda dtype: sizes[dtype])


def facts_of(kinds: Mapping[str, Kind]) -> dict[str, Any]:
    """What was written, in numbers."""
    sizes = _sizes(kinds)
    return {
        "tensors": len(kinds),
        "parameters": sum(kind.nbytes // kind.dtype.itemsize for kind in kinds.values()),
        "bytes": sum(sizes.values()),
        "dtypes": {str(dtype).removeprefix("torch."): size for dtype, size in sizes.items()},
    }


def _sizes(kinds: Mapping[str, Kind]) -> dict[torch.dtype, int]:
    """Number format -> bytes."""
    sizes: dict[torch.dtype, int] = {}
    for kind in kinds.values():
        sizes[kind.dtype] = sizes.get(kind.dtype, 0) + kind.nbytes
    return sizes
