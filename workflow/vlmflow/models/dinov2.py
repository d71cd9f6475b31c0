"""DINOv2 vision towers from an ONNX export (Oquab et al. 2023; transformers' Dinov2Model)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from transformers import Dinov2Config, Dinov2Model

from vlmflow.convert.layout import checking
from vlmflow.errors import UserError

_PREFIX = "backbone."
_RENAMED = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "encoder.encoder": "encoder",
}
_HEAD_SIZE = 64  # of every published DINOv2
_PATCH = 14


def load_dinov2_onnx(path: Path) -> Any:
    """The tower of an ONNX graph whose backbone was exported from transformers' Dinov2Model.

    The exporter keeps the names of biases, norms and convolutions; the weights of linear layers are anonymous
    constants, transposed, and are named here after the MatMul that reads them; the position embedding is split
    into the class token's row and the patch grid.
    """
    try:
        graph = onnx.load(str(path)).graph
    except Exception as error:
        raise UserError(f"not a readable ONNX graph: {error}", file=path) from error
    with checking("not a DINOv2 graph", path):
        return _model(_state(graph), path)


def _state(graph: Any) -> dict[str, torch.Tensor]:
    """Name in Dinov2Model -> values."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    state = {name.removeprefix(_PREFIX): value for name, value in constants.items() if name.startswith(_PREFIX)}
    for node in graph.node:
        weight = next((constants[name] for name in node.input if name in constants), None)
        match = re.fullmatch(_PREFIX.replace(".", r"\.") + r"(.+)\.MatMul(_\d+)?", _dotted(node.name))
        if node.op_type == "MatMul" and match and weight is not None and weight.ndim == 2:
            state[match[1] + ".weight"] = weight.T
    state["embeddings.position_embeddings"] = _position_embeddings(constants, state["embeddings.cls_token"].shape[-1])
    return {_rename(name): torch.from_numpy(value.copy()) for name, value in state.items()}


def _dotted(name: str) -> str:
    return name.strip("/").replace("/", ".")


def _rename(name: str) -> str:
    for old, new in _RENAMED.items():
        name = name.replace(old, new)
    return name


def _position_embeddings(constants: dict[str, np.ndarray], width: int) -> np.ndarray:
    """(1, 1 + patches, width): the class token's row before the grid's, as the graph adds them."""
    loose = [value for name, value in constants.items() if name.startswith("onnx::") and value.shape[-1:] == (width,)]
    rows = sorted((value.reshape(1, -1, width) for value in loose if value.ndim >= 3), key=lambda value: value.shape[1])
    return np.concatenate(rows, axis=1)


def _model(state: dict[str, torch.Tensor], path: Path) -> Any:
    width = state["embeddings.cls_token"].shape[-1]
    layers = 1 + max(int(match[1]) for name in state if (match := re.match(r"encoder\.layer\.(\d+)\.", name)))
    grid = round((state["embeddings.position_embeddings"].shape[1] - 1) ** 0.5)
    config = Dinov2Config(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // _HEAD_SIZE,
        mlp_ratio=4,
        patch_size=_PATCH,
        image_size=grid * _PATCH,
    )
    model = Dinov2Model(config)
    state.setdefault("embeddings.mask_token", torch.zeros(1, width))  # only masked pre-training uses it
    missing, unexpected = model.load_state_dict(state, strict=False)
    if missing or unexpected:
        raise UserError(f"not a DINOv2 graph: missing {missing[:5]}, unexpected {unexpected[:5]}", file=path)
    return model.eval()


def resize_positions(model: Any, image_size: int) -> None:
    """Interpolate the position embedding once, to the grid of ``image_size``; the model does the same on the fly."""
    with torch.no_grad():
        patches = (image_size // model.config.patch_size) ** 2
        probe = torch.zeros(1, 1 + patches, model.config.hidden_size)
        grid = model.embeddings.interpolate_pos_encoding(probe, image_size, image_size)
        model.embeddings.position_embeddings = torch.nn.Parameter(grid.clone())
    model.config.image_size = image_size
