"""Checkpoint files: which tensors there are, checked against the files before anything is computed."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vlmflow.errors import UserError
from vlmflow.weights.kinds import Kind, Span, State, Tensors, span_of

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""Names of number formats in safetensors files."""
_SETS = ((WEIGHTS, INDEX), ("pytorch_model.bin", "pytorch_model.bin.index.json"))
"""One file, or the index of several; safetensors come first."""
_MOST_HEADER = 100_000_000  # bytes; the limit of the safetensors library
_AGAIN = "fetch or make the checkpoint again"


class _Place(NamedTuple):
    kind: Kind
    offset: int


class SafetensorsFile:
    """One safetensors file (huggingface.co/docs/safetensors: 8 bytes of header length, JSON header, values).

    Raises :class:`UserError` if the file is cut off, too long, or not in this format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._places = _read_header(path)
        self.kinds = {name: place.kind for name, place in self._places.items()}

    def read(self, name: str) -> torch.Tensor:
        """The tensor, read from the file into memory of its own."""
        kind, offset = self._places[name]
        if not kind.nbytes:
            return torch.empty(kind.shape, dtype=kind.dtype)
        buffer = torch.empty(kind.nbytes, dtype=torch.uint8)
        with self.path.open("rb", buffering=0) as stream:
            stream.seek(offset)
            view, done = memoryview(buffer.numpy()), 0
            while done < kind.nbytes:  # one call reads at most 2 GiB
                count = stream.readinto(view[done:])
                if not count:
                    raise UserError(f"tensor {name} ends too early", _AGAIN, file=self.path)
                done += count
        return buffer.view(kind.dtype).view(kind.shape)

    def span(self, name: str) -> Span:
        """Where the bytes of the tensor lie."""
        return Span(self.path, self._places[name].offset)


class Checkpoint:
    """All tensors of a checkpoint: a folder (safetensors or PyTorch, one file or shards with an index) or one file.

    Raises :class:`UserError` naming file and tensor if a shard is missing or cut off, or the index does not tell the
    truth.
    """

    def __init__(self, place: Path) -> None:
        self._parts: dict[str, Tensors] = {}
        self.path = place
        files, index = _weight_files(place)
        for file in files:
            part = SafetensorsFile(file) if file.suffix == ".safetensors" else State(_unpickled(file))
            for name in part.kinds:
                if name in self._parts:
                    raise UserError(f"tensor {name} is in two files", "delete the file that is left over", file=file)
                self._parts[name] = part
        self.kinds = {name: part.kinds[name] for name, part in self._parts.items()}
        if index is not None:
            _check_index(index, self._parts)

    def read(self, name: str) -> torch.Tensor:
        """The tensor, read from its file."""
        return self._parts[name].read(name)

    def span(self, name: str) -> Span | None:
        """Where the bytes of the tensor lie, None in PyTorch's own format."""
        return span_of(self._parts[name], name)


def _weight_files(place: Path) -> tuple[list[Path], Path | None]:
    """The files that hold the tensors, and their index if there is one.

    Safetensors come before PyTorch's format, as transformers chooses. One file and an index side by side are refused:
    one of them is left over, and programs differ in which they take.
    """
    if place.is_file():
        return [place], None
    for single, index in _SETS:
        found = [name for name in (single, index) if (place / name).exists() or (place / name).is_symlink()]
        if len(found) == 2:
            raise UserError(
                f"two sets of weights: {single} and {index}", "delete the one that is left over", file=place
            )
        if found:
            shards = sorted(set(_weight_map(place / index).values())) if found == [index] else found
            for file in (place / name for name in shards):
                if not file.is_file():
                    reason = "a file that the index names is missing" if found == [index] else "a link to nothing"
                    raise UserError(reason, _AGAIN, file=file)
            return [place / name for name in shards], place / index if found == [index] else None
    others = sorted(place.glob("*.safetensors"))
    if len(others) == 1:
        return others, None
    reason = f"{len(others)} weight files but no {INDEX}" if others else "no weights (*.safetensors, pytorch_model.bin)"
    raise UserError(reason, "give the folder of a whole checkpoint", file=place)


def _weight_map(index: Path) -> dict[str, str]:
    try:
        entries = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        names = {str(Path(file).name) for file in entries.values()}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"not a weight index: {error!r}", _AGAIN, file=index) from None
    if names != set(entries.values()):
        raise UserError(f"a file leads out of the folder: {sorted(set(entries.values()) - names)[:3]}", file=index)
    return entries


def _check_index(index: Path, parts: Mapping[str, Tensors]) -> None:
    """Every tensor that an index lists must be in the file it says, and every tensor in a file must be listed."""
    entries = _weight_map(index)
    for name in entries:
        part = parts.get(name)
        if part is None or getattr(part, "path", index.with_name(entries[name])).name != entries[name]:
            raise UserError(f"the index says that {name} is in {entries[name]}, which it is not", _AGAIN, file=index)
    left_out = sorted(set(parts) - set(entries))
    if left_out:
        raise UserError(f"{len(left_out)} tensors are in no line of the index, first {left_out[0]}", _AGAIN, file=index)


def _read_header(path: Path) -> dict[str, _Place]:
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(_MOST_HEADER, size - 8):
            raise UserError(f"cut off or no safetensors file ({size} bytes)", _AGAIN, file=path)
        try:
            header: dict[str, Any] = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            places = {name: _place(entry, 8 + length) for name, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"the header is no safetensors header: {error!r}", _AGAIN, file=path) from None
    end = 8 + length
    for name, place in sorted(places.items(), key=lambda item: (item[1].offset, item[1].kind.nbytes)):
        if place.offset != end:
            raise UserError(f"tensor {name} does not begin where the one before it ends", _AGAIN, file=path)
        end += place.kind.nbytes
    if end != size:
        raise UserError(f"{size} bytes, but its header speaks of {end}", _AGAIN, file=path)
    return places


def _place(entry: Mapping[str, Any], start: int) -> _Place:
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"number format {entry['dtype']}")
    kind = Kind(DTYPES[entry["dtype"]], tuple(int(side) for side in entry["shape"]))
    first, last = entry["data_offsets"]
    if first < 0 or min(kind.shape, default=0) < 0 or last - first != math.prod(kind.shape) * kind.dtype.itemsize:
        raise ValueError(f"shape {kind.shape} in {last - first} bytes")
    return _Place(kind, start + first)


def _unpickled(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a PyTorch file; ``weights_only`` keeps it from running code."""
    try:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the format before PyTorch 1.6 cannot be mapped
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError, IndexError) as error:
        what = (
            "it wants more than tensors" if "weights_only" in str(error) else (str(error).splitlines() or ["empty"])[0]
        )
        advice = "nothing of it was run; use a file from a source that you trust"
        raise UserError(f"not a PyTorch file of tensors: {what}", advice, file=path) from None
    plain = isinstance(content, dict) and all(
        isinstance(name, str) and isinstance(value, torch.Tensor) and value.layout == torch.strided
        for name, value in content.items()
    )
    if not plain:
        raise UserError("not a table of tensors", "convert a training checkpoint first", file=path)
    return dict(content)
