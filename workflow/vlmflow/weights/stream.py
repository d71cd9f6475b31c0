"""Writing safetensors shards, one tensor in memory at a time."""

from __future__ import annotations

import errno
import itertools
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from vlmflow.errors import UserError
from vlmflow.housekeeping.sizes import check_room
from vlmflow.weights.checkpoint import DTYPES, INDEX, WEIGHTS
from vlmflow.weights.kinds import Kind, Span, Tensors, span_of
from vlmflow.weights.mapping import Piece, listed

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_BLOCK = 1 << 24  # bytes that are copied at a time
_CANNOT_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
MAX_SHARD_BYTES = 4_000_000_000


def write_tensors(
    tensors: Tensors,
    pieces: Sequence[Piece],
    folder: Path,
    expected: Mapping[str, tuple[int, ...]],
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> dict[str, Kind]:
    """Write what ``pieces`` make of ``tensors`` as safetensors below ``folder``; return name -> kind as written.

    ``expected``: name -> shape of every tensor that the result must have; before anything is written missing,
    unexpected, repeated and misshapen tensors are refused, by name (:class:`UserError`). ``dtype`` None keeps each
    tensor's number format. Shards are cut as Hugging Face's are, with the same index.
    """
    kinds = _kinds(tensors, pieces, dtype)
    check_tensors(kinds, expected)
    whole = [
        f"{name} ({str(kind.dtype).removeprefix('torch.')})"
        for name, kind in kinds.items()
        if not kind.dtype.is_floating_point
    ]
    if whole:
        raise UserError(
            "the weights are no floating-point numbers: " + listed(quantised=whole),
            "use the checkpoint that is not quantised",
        )
    check_room(folder, sum(kind.nbytes for kind in kinds.values()))
    with _Shards(kinds, folder, max_shard_bytes) as shards, ThreadPoolExecutor(1) as writer:
        written: Future[None] = writer.submit(lambda: None)
        for piece in pieces:
            made = _made(piece, tensors, kinds)
            written.result()  # one piece is being written while the next is made, no more
            written = writer.submit(shards.put, made)
        written.result()
    return kinds


def files_to_keep(tensors: Tensors, pieces: Sequence[Piece], max_shard_bytes: int) -> list[Path]:
    """The files of ``tensors``, index included, if they are as :func:`write_tensors` would write them; else none."""
    holders = {name: span.file for name in tensors.kinds if (span := span_of(tensors, name)) is not None}
    if len(holders) < len(tensors.kinds) or not all(
        piece.copies and piece.sources == piece.targets for piece in pieces
    ):
        return []
    groups = [list(names) for _, names in itertools.groupby(holders, key=lambda name: str(holders[name]))]
    files = list(dict.fromkeys(holders.values()))
    if groups != _grouped(tensors.kinds, max_shard_bytes) or [file.name for file in files] != _file_names(len(files)):
        return []
    return [*files, files[0].with_name(INDEX)] if len(files) > 1 else files


def _made(piece: Piece, tensors: Tensors, kinds: Mapping[str, Kind]) -> list[tuple[str, torch.Tensor | Span]]:
    """Name and values of what a piece makes, or where in a file the values lie if they stay as they are."""
    if not piece.copies:
        return list(zip(piece.targets, piece.make(*map(tensors.read, piece.sources)), strict=True))
    made: list[tuple[str, torch.Tensor | Span]] = []
    for source, target in zip(piece.sources, piece.targets, strict=True):
        span = span_of(tensors, source) if kinds[target] == tensors.kinds[source] else None
        made.append((target, tensors.read(source) if span is None else span))
    return made


def check_tensors(kinds: Mapping[str, Kind], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise :class:`UserError` unless names and shapes are the expected ones."""
    misshapen = [
        f"{name} {list(kinds[name].shape)} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in kinds and kinds[name].shape != tuple(shape)
    ]
    wrong = listed(
        missing=[name for name in expected if name not in kinds],
        unexpected=[name for name in kinds if name not in expected],
        misshapen=misshapen,
    )
    if wrong:
        raise UserError(
            f"the tensors do not fit the model's configuration: {wrong}",
            "check that config.json belongs to these weights",
        )


def _kinds(tensors: Tensors, pieces: Sequence[Piece], dtype: torch.dtype | None) -> dict[str, Kind]:
    """Name -> kind of what the pieces make, found out on the meta device."""
    kinds: dict[str, Kind] = {}
    counts = Counter(target for piece in pieces for target in piece.targets)
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        raise UserError("made twice: " + listed(repeated=repeated))
    for piece in pieces:
        sources = [tensors.kinds[name] for name in piece.sources]
        try:
            made = piece.make(*(torch.empty(kind.shape, dtype=kind.dtype, device="meta") for kind in sources))
        except (RuntimeError, ValueError) as error:
            shapes = ", ".join(f"{name} {list(kind.shape)}" for name, kind in zip(piece.sources, sources, strict=True))
            raise UserError(
                f"{shapes}: {str(error).splitlines()[0]}", "check that config.json belongs to these weights"
            ) from None
        for name, value in zip(piece.targets, made, strict=True):
            stored = dtype if dtype is not None and value.is_floating_point() else value.dtype
            kinds[name] = Kind(stored, tuple(value.shape))
    return kinds


class _Shards:
    """The files of a checkpoint, laid out from the start and filled in any order."""

    def __init__(self, kinds: Mapping[str, Kind], folder: Path, max_shard_bytes: int) -> None:
        self._left = set(kinds)
        self._kinds = kinds
        self._places: dict[str, tuple[int, int]] = {}
        self._files: list[int] = []
        groups = _grouped(kinds, max_shard_bytes)
        names = _file_names(len(groups))
        for name, group in zip(names, groups, strict=True):
            self._start(folder / name, {tensor: kinds[tensor] for tensor in group})
        if len(groups) > 1:
            content = {
                "metadata": {"total_size": sum(kind.nbytes for kind in kinds.values())},
                "weight_map": {tensor: name for name, group in zip(names, groups, strict=True) for tensor in group},
            }
            (folder / INDEX).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def _start(self, path: Path, kinds: Mapping[str, Kind]) -> None:
        """Write the header and remember where each tensor goes."""
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        position = 0
        for name, kind in kinds.items():
            end = position + kind.nbytes
            header[name] = {"dtype": _NAMES[kind.dtype], "shape": kind.shape, "data_offsets": [position, end]}
            position = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # values are aligned, as the format wishes
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        self._files.append(file)
        _write_all(file, len(text).to_bytes(8, "little") + text, 0)
        os.truncate(file, 8 + len(text) + position)
        offset = 8 + len(text)
        for name, kind in kinds.items():
            self._places[name] = file, offset
            offset += kind.nbytes

    def put(self, made: Sequence[tuple[str, torch.Tensor | Span]]) -> None:
        """Put each tensor in its place: values in the number format that was laid out, or bytes of another file."""
        for name, value in made:
            file, offset = self._places[name]
            kind = self._kinds[name]
            if isinstance(value, Span):
                with value.file.open("rb") as source:
                    _copy(source.fileno(), value.offset, file, offset, kind.nbytes)
            elif tuple(value.shape) != kind.shape:
                raise RuntimeError(f"{name} became {tuple(value.shape)}, {kind.shape} was laid out")
            elif value.numel():
                values = value.to(kind.dtype).contiguous()
                _write_all(file, memoryview(values.reshape(-1).view(torch.uint8).numpy()), offset)
            self._left.remove(name)

    def __enter__(self) -> _Shards:
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        for file in self._files:
            os.close(file)
        if not failed and self._left:
            raise RuntimeError(f"never written: {sorted(self._left)[:5]}")


def _file_names(count: int) -> list[str]:
    if count == 1:
        return [WEIGHTS]
    return [f"model-{index:05d}-of-{count:05d}.safetensors" for index in range(1, count + 1)]


def _grouped(kinds: Mapping[str, Kind], max_shard_bytes: int) -> list[list[str]]:
    """The tensors of each file, in order; a tensor that is larger than a file may be gets one of its own."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, kind in kinds.items():
        if groups[-1] and size + kind.nbytes > max_shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += kind.nbytes
    return groups


def _write_all(file: int, data: memoryview | bytes, offset: int) -> None:
    view = memoryview(data)
    while view:  # one call writes at most 2 GiB
        count = os.pwrite(file, view[:_BLOCK], offset)
        view, offset = view[count:], offset + count


def _copy(source: int, start: int, target: int, offset: int, size: int) -> None:
    """Copy ``size`` bytes; a file system that cannot do it by itself gets them through memory, a block at a time."""
    done = 0
    while done < size:
        block = min(_BLOCK, size - done)
        try:
            count = os.copy_file_range(source, target, block, start + done, offset + done)
        except OSError as error:
            if error.errno not in _CANNOT_COPY:
                raise
            data = os.pread(source, block, start + done)
            _write_all(target, data, offset + done)
            count = len(data)
        if not count:
            raise UserError(f"a weight file became shorter while it was read, at byte {start + done}")
        done += count
