"""Directories that DeepSpeed writes (``iter_N.pth/``), whose weights ZeRO may have cut up between processes.

The layout is the one that DeepSpeed's own zero_to_fp32.py puts together; that script unpickles everything that is in
the files, this reader gets a safer way to do it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vlmflow.errors import UserError

_WHOLE = "mp_rank_00_model_states.pt"
_PART = "zero_pp_rank_{}_mp_rank_00_model_states.pt"
_OPTIMIZER = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_00_optim_states\.pt")
_EXPORT = "write one file with DeepSpeed's zero_to_fp32.py, in a place where you trust the checkpoint, and give that"


def read_deepspeed(folder: Path, unpickled: Callable[[Path], Any]) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """Name -> value of every tensor of the model, and what lies beside them; ``unpickled`` reads one file.

    Stages 1 and 2 store the weights whole. Stage 3 stores them as parts of the optimizer's float32 copy, one file per
    process; only what was trained is in there. Raises :class:`UserError` if parts are missing or do not add up.
    """
    if len(list(folder.glob("mp_rank_*_model_states.pt"))) > 1:
        raise UserError("weights that were split by tensor parallelism", _EXPORT, file=folder)
    if (folder / _WHOLE).is_file():
        content = unpickled(folder / _WHOLE)
        state = _entry(content, "module", folder / _WHOLE)
        if not isinstance(state, dict) or not state:
            raise UserError("its entry 'module' is no table of tensors", _EXPORT, file=folder / _WHOLE)
        return state, content
    if not (folder / _PART.format(0)).is_file():
        inner = sorted(path.name for path in folder.glob("*.pth"))
        advice = f"name one of {', '.join(inner[:5])} in it" if inner else f"it should hold {_WHOLE}"
        raise UserError("no directory that DeepSpeed or `xtuner convert pth_to_hf` wrote", advice, file=folder)
    content = unpickled(folder / _PART.format(0))
    groups = _entry(content, "param_shapes", folder / _PART.format(0))
    return _joined(folder, groups, unpickled), content


def _joined(folder: Path, groups: Any, unpickled: Callable[[Path], Any]) -> dict[str, torch.Tensor]:
    """The weights of stage 3: of each tensor every process has an equal share, the last one padded."""
    shapes = {name: shape for group in groups for name, shape in group.items()}
    files = _optimizer_files(folder)
    flat = [_flat(file, len(files), unpickled) for file in files]
    state, offset = {}, 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        share = math.ceil(size / len(flat))
        if any(part.numel() < offset + share for part in flat):
            raise UserError(f"the parts of {name} are not all there", _EXPORT, file=folder)
        state[name] = torch.cat([part.narrow(0, offset, share) for part in flat])[:size].view(tuple(shape))
        offset += share
    if any(part.numel() != offset for part in flat):
        raise UserError(f"the parts hold {flat[0].numel()} numbers, the weights {offset}", _EXPORT, file=folder)
    return state


def _optimizer_files(folder: Path) -> list[Path]:
    """The file of each process, in the order of their ranks; none may be missing."""
    ranks = {int(found[1]): path for path in folder.iterdir() if (found := _OPTIMIZER.fullmatch(path.name))}
    if not ranks or sorted(ranks) != list(range(len(ranks))):
        raise UserError("files *_optim_states.pt are missing", _EXPORT, file=folder)
    return [ranks[rank] for rank in sorted(ranks)]


def _flat(file: Path, processes: int, unpickled: Callable[[Path], Any]) -> torch.Tensor:
    """The trained numbers of one process, in one row."""
    optimizer = _entry(unpickled(file), "optimizer_state_dict", file)
    count = _entry(optimizer, "partition_count", file)
    if (max(count) if isinstance(count, list) else count) != processes:
        raise UserError(f"one of {count} files, but there are {processes}", _EXPORT, file=file)
    return torch.cat([part.reshape(-1) for part in _entry(optimizer, "fp32_flat_groups", file)])


def _entry(content: Any, key: str, file: Path) -> Any:
    if not isinstance(content, dict) or key not in content:
        raise UserError(f"no entry '{key}'", _EXPORT, file=file)
    return content[key]
