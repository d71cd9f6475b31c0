"""LoRA over frozen linear layers that read the same input, computed together.

peft computes each layer by itself: four products and three passes over the output per layer, and a dropped copy of the
input for each. Here query, key and value (and gate and up) are one product with the base, one with all A matrices, and
each B product is added by the matrix product itself. Only the dropped input and its low-rank image are kept for the
backward pass. The parameters stay where peft has them. The layers of a group share one dropout mask.
"""

# ruff: noqa: ARG001 (what PyTorch calls to learn shapes alone has the arguments of the real function)

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout, linear
from transformers.activations import SiLUActivation

_GATE_UP, _DOWN = ("gate_proj", "up_proj"), ("down_proj",)
_GROUPS = (("q_proj", "k_proj", "v_proj"), ("o_proj",), _GATE_UP, _DOWN, ("qkv_proj",), ("gate_up_proj",))


@torch.library.custom_op("vlmflow::lora_linear", mutates_args=())
def _forward(
    x: Tensor, dropped: Tensor | None, weight: Tensor, absmax: Tensor | None, quant_type: str, bias: Tensor | None,
    down: Tensor, up: Sequence[Tensor], scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    rows = x.view(-1, x.shape[-1])
    output = linear(rows, _plain(weight, absmax, quant_type, x), bias)
    low = (rows if dropped is None else dropped.view(rows.shape)) @ down.T
    column = rank = 0
    for matrix in up:
        width, r = matrix.shape
        output[:, column : column + width].addmm_(low[:, rank : rank + r], matrix.T, alpha=scale)
        column, rank = column + width, rank + r
    return output.view(*x.shape[:-1], -1), low


@_forward.register_fake
def _(
    x: Tensor, dropped: Tensor | None, weight: Tensor, absmax: Tensor | None, quant_type: str, bias: Tensor | None,
    down: Tensor, up: Sequence[Tensor], scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    width = sum(matrix.shape[0] for matrix in up)
    return x.new_empty(*x.shape[:-1], width), x.new_empty(x.numel() // x.shape[-1], down.shape[0])


@torch.library.custom_op("vlmflow::lora_linear_backward", mutates_args=())
def _backward(
    grad: Tensor, dropped: Tensor, low: Tensor, weight: Tensor, absmax: Tensor | None, quant_type: str,
    down: Tensor, up: Sequence[Tensor], scale: float, apart: bool,
) -> list[Tensor]:  # fmt: skip
    """Gradients of input, dropped input (empty unless ``apart``), ``down`` and each of ``up``."""
    rows, inputs = grad.reshape(-1, grad.shape[-1]), dropped.view(-1, dropped.shape[-1])
    low_grad = torch.empty_like(low)
    up_grads = []
    column = rank = 0
    for matrix in up:
        width, r = matrix.shape
        part = rows[:, column : column + width]
        low_grad[:, rank : rank + r] = (part @ matrix).mul_(scale)
        up_grads.append((part.T @ low[:, rank : rank + r]).mul_(scale))
        column, rank = column + width, rank + r
    x_grad = rows @ _plain(weight, absmax, quant_type, inputs)
    if apart:
        dropped_grad = (low_grad @ down).view(dropped.shape)
    else:
        dropped_grad = grad.new_empty(0)
        x_grad.addmm_(low_grad, down)
    return [x_grad.view(dropped.shape), dropped_grad, low_grad.T @ inputs, *up_grads]


@_backward.register_fake
def _(
    grad: Tensor, dropped: Tensor, low: Tensor, weight: Tensor, absmax: Tensor | None, quant_type: str,
    down: Tensor, up: Sequence[Tensor], scale: float, apart: bool,
) -> list[Tensor]:  # fmt: skip
    x_grad = dropped.new_empty(dropped.shape)
    return [x_grad, dropped.new_empty(dropped.shape if apart else 0), torch.empty_like(down),
            *(torch.empty_like(matrix) for matrix in up)]  # fmt: skip


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, dropped, weight, absmax, quant_type, _, down, up, scale = inputs
    ctx.save_for_backward(x if dropped is None else dropped, output[1], weight, absmax, down, *up)
    ctx.quant_type, ctx.scale, ctx.apart = quant_type, scale, dropped is not None


def _gradients(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    inputs, low, weight, absmax, down, *up = ctx.saved_tensors
    x_grad, dropped_grad, down_grad, *up_grads = _backward(
        grad, inputs, low, weight, absmax, ctx.quant_type, down, up, ctx.scale, ctx.apart
    )
    return x_grad, dropped_grad if ctx.apart else None, None, None, None, None, down_grad, up_grads, None


_forward.register_autograd(_gradients, setup_context=_save)


def _plain(weight: Tensor, absmax: Tensor | None, quant_type: str, like: Tensor) -> Tensor:
    """The base matrix in the number format of ``like``: as it is, or out of its 4 bits."""
    if absmax is None:
        return weight
    columns = like.shape[-1]
    shape = [2 * weight.numel() // columns, columns]
    plain: Tensor = torch.ops.bitsandbytes.dequantize_4bit(
        weight, absmax, 2 * weight.numel() // absmax.numel(), quant_type, shape, like.dtype
    )
    return plain


class Group:
    """Adapted layers (peft's) that read one input; calling it gives one output per layer."""

    def __init__(self, layers: Sequence[Any], dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._down = [layer.lora_A["default"].weight for layer in layers]
        self._up = [layer.lora_B["default"].weight for layer in layers]
        self.rate = float(getattr(layers[0].lora_dropout["default"], "p", 0.0))
        self._scale = float(layers[0].scaling["default"])
        bases = [layer.get_base_layer() for layer in layers]
        self._sizes = [base.out_features for base in bases]
        self._weight, self._absmax, self._quant_type = _joined(bases)
        biases = [base.bias for base in bases]
        self._bias = None if biases[0] is None else torch.cat([bias.data for bias in biases])
        self._dropout: Callable[..., Tensor] = dropout
        if self._weight.is_cuda:
            from vlmflow.training import kernels  # needs Triton, which comes with PyTorch for CUDA

            self._dropout = kernels.dropout
        self._waiting: list[Tensor] = []

    def first(self, x: Tensor) -> Tensor:
        """The output of the first layer; those of the others wait for their calls."""
        outputs = self.outputs(x).split(self._sizes, dim=-1)
        self._waiting = list(outputs[1:])
        return outputs[0]

    def forget(self) -> None:
        """Let go of outputs that nobody came for, as when memory ran out in between."""
        self._waiting = []

    def next(self) -> Tensor:
        """The output of the next layer, for the input of the first."""
        return self._waiting.pop(0)

    def outputs(self, x: Tensor, dropped: Tensor | None = None) -> Tensor:
        """(..., widths of all layers) side by side; ``dropped`` is the input after dropout, if it was made already."""
        x = x.to(self._dtype)
        if dropped is None and self.rate:
            dropped = self._dropout(x, self.rate)
        down = torch.cat([matrix.to(x.dtype) for matrix in self._down])
        up = [matrix.to(x.dtype) for matrix in self._up]
        output: Tensor = _forward(
            x, dropped, self._weight, self._absmax, self._quant_type, self._bias, down, up, self._scale
        )[0]
        return output


def _joined(bases: Sequence[Any]) -> tuple[Tensor, Tensor | None, str]:
    """The frozen matrices one below the other (bytes of 4-bit ones), and their scales; the layers keep views of it."""
    joined = torch.cat([base.weight.data for base in bases])
    start = 0
    for base in bases:
        end = start + base.weight.shape[0]
        base.weight.data = joined[start:end]
        start = end
    states = [getattr(base.weight, "quant_state", None) for base in bases]
    if states[0] is None:
        return joined, None, ""
    return joined.view(-1, 1), torch.cat([_scales(state) for state in states]), states[0].quant_type


def _scales(state: Any) -> Tensor:
    """(blocks,) float32: the scale of each block of 4-bit numbers, out of its own 8 bits if it was quantised twice."""
    if not state.nested:
        return state.absmax.float()
    nested = state.state2
    scales: Tensor = torch.ops.bitsandbytes.dequantize_blockwise(
        state.absmax, nested.absmax, nested.code, nested.blocksize, torch.float32
    )
    return scales + state.offset


def fuse_adapters(model: Any, dtype: torch.dtype) -> list[Group]:
    """Compute the plain LoRA layers in the blocks of a language model in groups; returns these.

    For training only: dropout is always on. Layers with other adapters (DoRA), without one, or with unlike neighbours
    are left to peft.
    """
    groups: list[Group] = []
    for module in model.modules():
        made = {}
        for names in _GROUPS:
            layers = [getattr(module, name, None) for name in names]
            if all(_is_plain(layer) for layer in layers) and _are_alike(layers):
                made[names] = Group(layers, dtype)
                _install(layers, made[names])
        if made.keys() >= {_GATE_UP, _DOWN} and _is_silu(module.act_fn) and module.down_proj.weight.is_cuda:
            _install_swiglu(module, made[_GATE_UP], made[_DOWN])
        groups += made.values()
    return groups


def _is_plain(layer: Any) -> bool:
    adapters = getattr(layer, "lora_A", {})
    return "default" in adapters and "default" not in layer.lora_variant and not layer.lora_bias["default"]


def _are_alike(layers: Sequence[Any]) -> bool:
    kinds = {(type(layer), layer.get_base_layer().bias is None, layer.scaling["default"]) for layer in layers}
    return len(kinds) == 1


def _is_silu(activation: Any) -> bool:
    return isinstance(activation, torch.nn.SiLU | SiLUActivation)


def _install(layers: Sequence[Any], group: Group) -> None:
    first, *others = layers
    first.forward = types.MethodType(lambda _, x: group.first(x), first)
    for other in others:
        other.forward = types.MethodType(lambda _, __: group.next(), other)


def _install_swiglu(mlp: Any, gate_up: Group, down: Group) -> None:
    from vlmflow.training.kernels import swiglu

    mlp.forward = types.MethodType(lambda _, x: down.outputs(*swiglu(gate_up.outputs(x), down.rate)), mlp)
