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
import struct
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from vlmflow.convert.zero import read_deepspeed
from vlmflow.errors import UserError

_BOOKKEEPING = re.compile(
    r"(?:mmengine|xtuner|deepspeed)\..+"
    r"|numpy\.(?:_?core\.multiarray\.(?:_reconstruct|scalar)|ndarray|dtype|dtypes\.\w+)"
    r"|(?:builtins|__builtin__)\.(?:getattr|object|slice|int|float|str|bool|list|dict|set|tuple)"
    r"|collections\.(?:defaultdict|deque)|datetime\.\w+|pathlib\.\w+|copy_?reg\._reconstructor"
)
"""``getattr`` is among them because that is how methods are stored: ``getattr(class, name)``."""
_OF_TENSORS = re.compile(
    r"torch\._utils\._rebuild\w+|torch\.(?:storage\.)?\w+Storage|torch\.(?:Size|\w*float\d+|u?int\d+)"
    r"|collections\.OrderedDict|_codecs\.encode"
)
_STRINGS = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_UNTOUCHED = "nothing of it was run; use a file from a source that you trust"
_GIVE = "give the .pth file or directory that XTuner wrote, or a folder of `xtuner convert pth_to_hf`"
_AGAIN = f"copy it again if it should be whole (a few lines of text are a pointer of Git LFS); {_GIVE}"
_BROKEN = (
    RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError,
    MemoryError, OSError, struct.error, pickle.UnpicklingError,
)  # fmt: skip
"""What PyTorch raises for a file that is not in its format, or only the beginning of one."""
_ZIP, _PICKLE = b"PK", b"\x80"
"""How PyTorch's files begin, of the present and of the old format."""
_SHOWN = 5


class Trained(NamedTuple):
    """What a training run leaves: its weights by name, and the text of its configuration, empty if it is not there."""

    weights: dict[str, torch.Tensor]
    config: str


class Inert:
    """Stands for an object that is not needed: takes everything, keeps nothing."""

    def __new__(cls, *_: Any) -> Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def _table(*_: Any) -> dict[Any, Any]:
    """Stands for ``collections.defaultdict``, whatever its default."""
    return {}


def _row(*_: Any) -> list[Any]:
    """Stands for ``collections.deque``, whatever its length."""
    return []


_STAND_INS = {"collections.defaultdict": _table, "collections.deque": _row}
"""What the entries of bookkeeping are put into; everything else gets none."""


def read_training_checkpoint(place: Path) -> Trained:
    """Every tensor of a model's state: of a ``.pth`` file, or of the directory that DeepSpeed makes.

    Values stay in the file until they are used, where its format allows that. Of a DeepSpeed directory of ZeRO stage 1
    or 2 the weights that the network computed with are taken, of stage 3 the float32 ones of the optimizer, for there
    are no others. MMEngine keeps the text of its configuration in ``meta.cfg``. Raises :class:`UserError` naming the
    file and what is wrong with it.
    """
    if not place.exists():
        raise UserError("no such file", "check the path", file=place)
    if place.is_dir():
        weights, content = read_deepspeed(place, unpickled)
    else:
        weights = content = unpickled(place)
    for key in ("state_dict", "module"):  # MMEngine, one file of DeepSpeed
        if place.is_file() and isinstance(content, dict) and isinstance(content.get(key), dict):
            weights = content[key]
            break
    if not isinstance(weights, dict) or not weights:
        raise UserError("holds no weights by name", _GIVE, file=place)
    for name, value in weights.items():
        if what := _unfit(name, value):
            raise UserError(f"its entry {name} is {what}", _GIVE, file=place)
    meta = content.get("meta")
    config = meta.get("cfg") if isinstance(meta, dict) else None
    return Trained(weights, config if isinstance(config, str) else "")


def _unfit(name: Any, value: Any) -> str:
    """What an entry is instead of a tensor with a name and with values; empty if it is one."""
    if not isinstance(name, str):
        return f"named by {type(name).__name__}, not by text"
    if not isinstance(value, torch.Tensor):
        return f"no tensor but {type(value).__name__}"
    if value.is_quantized:
        return "a quantised tensor"
    if value.layout != torch.strided:
        return "a sparse tensor"
    return "a tensor without values" if value.is_meta else ""


def unpickled(path: Path) -> Any:
    """What a PyTorch file holds, with an :class:`Inert` object for everything that is neither tensor nor plain data.

    Raises :class:`UserError`, having run nothing, for a file that asks for anything else or cannot be read.
    """
    with path.open("rb") as stream:
        start = stream.read(2)
    zipped = zipfile.is_zipfile(path)  # the format before PyTorch 1.6 cannot be mapped
    if path.suffix == ".safetensors" or (start == _ZIP and not zipped):
        raise UserError("cut off or not a PyTorch file", _AGAIN, file=path)
    why = ""
    try:
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipped else []
        foreign = sorted(name for name in unknown if not _BOOKKEEPING.fullmatch(name))
        if not foreign:
            with torch.serialization.safe_globals([(_STAND_INS.get(name, Inert), name) for name in unknown]):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped or None)
    except _BROKEN as error:
        named = {name for name in _names(path) if not _OF_TENSORS.fullmatch(name)}
        foreign = sorted(name for name in named if not _BOOKKEEPING.fullmatch(name))
        found = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
        if found and isinstance(error, pickle.UnpicklingError) and (zipped or start.startswith(_PICKLE)):
            why = found[1].strip()
    if foreign:
        shown = ", ".join(foreign[:_SHOWN]) + (", ..." if len(foreign) > _SHOWN else "")
        raise UserError(f"asks for {shown}, which no checkpoint needs", _UNTOUCHED, file=path)
    if why:
        raise UserError(f"not a PyTorch file of tensors: {why}", _UNTOUCHED, file=path)
    raise UserError("cut off or not a PyTorch file", _AGAIN, file=path)


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
