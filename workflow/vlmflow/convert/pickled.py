"""Tensors out of training checkpoints, which are pickles: read without running anything that is written in them.

A ``.pth`` file of MMEngine holds the weights beside the state of the training (message hub, schedulers): objects of
classes that need not be installed. PyTorch's ``weights_only`` reader calls nothing but the functions that rebuild
tensors, and refuses every other name. Here the names of known bookkeeping classes are given to it with an inert class
in their place, which takes any arguments and keeps none. That is as safe as ``weights_only`` itself: no name in the
file is ever imported or looked up, and the only thing a file can make more of is objects without content. Any name
that is not known bookkeeping is taken for an attack or a mistake, and the whole file is refused.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import torch

from vlmflow.convert.zero import read_deepspeed
from vlmflow.errors import UserError

_BOOKKEEPING = re.compile(
    r"(?:mmengine|xtuner|deepspeed)\..+"
    r"|numpy\.(?:_?core\.multiarray\.(?:_reconstruct|scalar)|ndarray|dtype|dtypes\.\w+)"
    r"|(?:builtins|__builtin__)\.(?:getattr|object|slice|int|float|str|bool)"  # methods are getattr(class, name)
    r"|collections\.(?:defaultdict|deque)|datetime\.\w+|pathlib\.\w+|copy_?reg\._reconstructor"
)
_OF_TENSORS = re.compile(
    r"torch\._utils\._rebuild\w+|torch\.(?:storage\.)?\w+Storage|torch\.(?:Size|\w*float\d+|u?int\d+)"
    r"|collections\.OrderedDict|_codecs\.encode"
)
_STRINGS = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_UNTOUCHED = "nothing of it was run; use a file from a source that you trust"
_SHOWN = 5


class Inert:
    """Stands for an object that is not needed: takes everything, keeps nothing."""

    def __new__(cls, *_: Any) -> Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def read_training_checkpoint(place: Path) -> dict[str, torch.Tensor]:
    """Name -> value of every tensor of a model's state: of a ``.pth`` file, or of the directory that DeepSpeed makes.

    Values stay in the file until they are used, where its format allows that. Of a DeepSpeed directory of ZeRO stage 1
    or 2 the weights that the network computed with are taken, of stage 3 the float32 ones of the optimizer, for there
    are no others. Raises :class:`UserError` naming the file and what is wrong with it.
    """
    if not place.exists():
        raise UserError("no such file", "check the path", file=place)
    if place.is_dir():
        return read_deepspeed(place, unpickled)
    content = unpickled(place)
    for key in ("state_dict", "module"):  # MMEngine, one file of DeepSpeed
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not content:
        raise UserError("holds no weights by name", "give the checkpoint that XTuner wrote", file=place)
    others = [str(name) for name, value in content.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise UserError(f"{others[0]} and {len(others) - 1} more entries are no tensors", file=place)
    return content


def unpickled(path: Path) -> Any:
    """What a PyTorch file holds, with an :class:`Inert` object for everything that is neither tensor nor plain data.

    Raises :class:`UserError`, having run nothing, for a file that asks for anything else or cannot be read.
    """
    try:
        zipped = zipfile.is_zipfile(path)  # the format before PyTorch 1.6 cannot be mapped
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipped else []
        foreign = sorted(name for name in unknown if not _BOOKKEEPING.fullmatch(name))
        if not foreign:
            with torch.serialization.safe_globals([(Inert, name) for name in unknown]):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped or None)
        why = ""
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, pickle.UnpicklingError) as error:
        named = {name for name in _names(path) if not _OF_TENSORS.fullmatch(name)}
        foreign = sorted(name for name in named if not _BOOKKEEPING.fullmatch(name))
        found = re.search(r"WeightsUnpickler error:\s*(.+)", str(error)) or re.match("(.+)", str(error))
        why = found[1].strip() if found else type(error).__name__
    if foreign:
        shown = ", ".join(foreign[:_SHOWN]) + (", ..." if len(foreign) > _SHOWN else "")
        raise UserError(f"asks for {shown}, which no checkpoint needs", _UNTOUCHED, file=path)
    raise UserError(f"not a PyTorch file of tensors: {why}", _UNTOUCHED, file=path)


def _names(path: Path) -> Iterator[str]:
    """Every ``module.name`` that the pickles of a file mention, found by reading their instructions only."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as stream:
            yield from _names_in(stream)
        return
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.namelist():
                if entry.endswith(".pkl"):
                    yield from _names_in(BytesIO(archive.read(entry)))
    except (zipfile.BadZipFile, OSError, ValueError):
        return


def _names_in(stream: BinaryIO) -> Iterator[str]:
    strings: list[str] = []
    try:
        while True:  # the old format is a row of pickles
            for operation, argument, _ in pickletools.genops(stream):
                if operation.name in _STRINGS:
                    strings.append(str(argument))
                elif operation.name in ("GLOBAL", "INST"):
                    yield str(argument).replace(" ", ".")
                elif operation.name == "STACK_GLOBAL":
                    yield ".".join(strings[-2:])
    except (ValueError, IndexError, UnicodeDecodeError):
        return
