"""Dropout, and SwiGLU (Shazeer 2020) with the dropout of the adapter that reads it, as Triton kernels for CUDA.

The product that gate and up come from has them side by side, and their gradients are written side by side again: no
copy. Dropout masks are not stored but drawn again from their seed in the backward pass, eight numbers of 16 bits at a
time (a rate is met to 1/131,072): of Philox's four of 32, torch.compile's own dropout uses one, and drawing takes it
longer than reading the input.
"""

# ruff: noqa: N803, ARG001
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 256
_PARTS = tl.constexpr(8)  # numbers of 16 bits from one call of Philox
_ROUNDS = tl.constexpr(7)  # pass all tests of BigCrush (Salmon et al. 2011)
_MOST = 2**31 - 1


@triton.jit
def _word(a, b, c, d, part: tl.constexpr):
    """The ``part``-th of eight numbers of 16 bits in four of 32."""
    word = a if part < 2 else (b if part < 4 else (c if part < 6 else d))
    return (word >> (16 * (part % 2))) & 0xFFFF


@triton.jit
def _forward_kernel(joined, product, dropped, seed, width, limit, scale, DROPS: tl.constexpr, BLOCK: tl.constexpr):
    row, block, lanes = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, BLOCK)
    a, b, c, d = tl.randint4x(tl.load(seed), (row * tl.num_programs(1) + block) * BLOCK + lanes, _ROUNDS)
    for part in tl.static_range(_PARTS):
        column = (block * _PARTS + part) * BLOCK + lanes
        inside = column < width
        gate = tl.load(joined + row * 2 * width + column, mask=inside).to(tl.float32)
        up = tl.load(joined + (row * 2 + 1) * width + column, mask=inside).to(tl.float32)
        value = (gate * tl.sigmoid(gate) * up).to(product.dtype.element_ty)
        tl.store(product + row * width + column, value, mask=inside)
        if DROPS:
            kept = tl.where(_word(a, b, c, d, part) >= limit, value.to(tl.float32) * scale, 0.0)
            tl.store(dropped + row * width + column, kept.to(dropped.dtype.element_ty), mask=inside)


@triton.jit
def _backward_kernel(
    joined, grad, dropped_grad, result, seed, width, limit, scale, DROPS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row, block, lanes = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, BLOCK)
    a, b, c, d = tl.randint4x(tl.load(seed), (row * tl.num_programs(1) + block) * BLOCK + lanes, _ROUNDS)
    for part in tl.static_range(_PARTS):
        column = (block * _PARTS + part) * BLOCK + lanes
        inside = column < width
        gate = tl.load(joined + row * 2 * width + column, mask=inside).to(tl.float32)
        up = tl.load(joined + (row * 2 + 1) * width + column, mask=inside).to(tl.float32)
        slope = tl.load(grad + row * width + column, mask=inside).to(tl.float32)
        if DROPS:
            through = tl.load(dropped_grad + row * width + column, mask=inside).to(tl.float32)
            slope += tl.where(_word(a, b, c, d, part) >= limit, through * scale, 0.0)
        sigmoid = tl.sigmoid(gate)
        gate_grad = slope * up * sigmoid * (1 + gate * (1 - sigmoid))
        up_grad = slope * gate * sigmoid
        tl.store(result + row * 2 * width + column, gate_grad.to(result.dtype.element_ty), mask=inside)
        tl.store(result + (row * 2 + 1) * width + column, up_grad.to(result.dtype.element_ty), mask=inside)


@triton.jit
def _dropout_kernel(x, result, seed, count, limit, scale, BLOCK: tl.constexpr):
    block, lanes = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    a, b, c, d = tl.randint4x(tl.load(seed), block * BLOCK + lanes, _ROUNDS)
    for part in tl.static_range(_PARTS):
        place = (block * _PARTS + part) * BLOCK + lanes
        inside = place < count
        value = tl.load(x + place, mask=inside).to(tl.float32) * scale
        kept = tl.where(_word(a, b, c, d, part) >= limit, value, 0.0)
        tl.store(result + place, kept.to(result.dtype.element_ty), mask=inside)


def _odds(rate: float) -> tuple[int, float]:
    """Below which number of 16 bits a value is dropped, and what the others are multiplied with."""
    limit = round(rate * 2**16)
    return limit, 2**16 / (2**16 - limit)


def _grid(rows: int, width: int) -> tuple[int, int]:
    return rows, triton.cdiv(width, _PARTS.value * _BLOCK)


@torch.library.custom_op("vlmflow::swiglu", mutates_args=())
def _forward(joined: Tensor, rate: float) -> tuple[Tensor, Tensor, Tensor]:
    rows, width = joined.numel() // joined.shape[-1], joined.shape[-1] // 2
    product = joined.new_empty(*joined.shape[:-1], width)
    dropped = torch.empty_like(product) if rate else joined.new_empty(0)
    seed = torch.randint(_MOST, (1,), device=joined.device)
    _forward_kernel[_grid(rows, width)](joined, product, dropped, seed, width, *_odds(rate), rate > 0, _BLOCK)
    return product, dropped, seed


@_forward.register_fake
def _(joined: Tensor, rate: float) -> tuple[Tensor, Tensor, Tensor]:
    product = joined.new_empty(*joined.shape[:-1], joined.shape[-1] // 2)
    return product, torch.empty_like(product) if rate else joined.new_empty(0), joined.new_empty(1, dtype=torch.int64)


@torch.library.custom_op("vlmflow::swiglu_backward", mutates_args=())
def _backward(joined: Tensor, grad: Tensor, dropped_grad: Tensor, seed: Tensor, rate: float) -> Tensor:
    rows, width = joined.numel() // joined.shape[-1], joined.shape[-1] // 2
    result = torch.empty_like(joined)
    arguments = (
        joined,
        grad.contiguous(),
        dropped_grad.contiguous(),
        result,
        seed,
        width,
        *_odds(rate),
        rate > 0,
        _BLOCK,
    )
    _backward_kernel[_grid(rows, width)](*arguments)
    return result


@_backward.register_fake
def _(joined: Tensor, grad: Tensor, dropped_grad: Tensor, seed: Tensor, rate: float) -> Tensor:
    return torch.empty_like(joined)


def _save(ctx: Any, inputs: tuple[Tensor, float], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[0], output[2])
    ctx.rate = inputs[1]


def _gradients(ctx: Any, grad: Tensor, dropped_grad: Tensor, _: Tensor) -> tuple[Tensor, None]:
    joined, seed = ctx.saved_tensors
    return _backward(joined, grad, dropped_grad, seed, ctx.rate), None


_forward.register_autograd(_gradients, setup_context=_save)


def swiglu(joined: Tensor, rate: float) -> tuple[Tensor, Tensor | None]:
    """``joined``: (..., 2 x width), gate and up, contiguous, on a GPU. Returns silu(gate) * up, (..., width), and the
    same with dropout of ``rate``, None where that is 0."""
    product, dropped, _ = _forward(joined, rate)
    return product, dropped if rate else None


def _drop(x: Tensor, seed: Tensor, rate: float) -> Tensor:
    result = torch.empty_like(x)
    _dropout_kernel[(triton.cdiv(x.numel(), _PARTS.value * _BLOCK),)](x, result, seed, x.numel(), *_odds(rate), _BLOCK)
    return result


@torch.library.custom_op("vlmflow::dropout", mutates_args=())
def _dropout(x: Tensor, rate: float) -> tuple[Tensor, Tensor]:
    seed = torch.randint(_MOST, (1,), device=x.device)
    return _drop(x.contiguous(), seed, rate), seed


@_dropout.register_fake
def _(x: Tensor, rate: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty(1, dtype=torch.int64)


@torch.library.custom_op("vlmflow::dropout_backward", mutates_args=())
def _dropout_backward(grad: Tensor, seed: Tensor, rate: float) -> Tensor:
    return _drop(grad.contiguous(), seed, rate)


@_dropout_backward.register_fake
def _(grad: Tensor, seed: Tensor, rate: float) -> Tensor:
    return torch.empty_like(grad, memory_format=torch.contiguous_format)


def _save_seed(ctx: Any, inputs: tuple[Tensor, float], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.rate = inputs[1]


def _dropout_gradients(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None]:
    return _dropout_backward(grad, *ctx.saved_tensors, ctx.rate), None


_dropout.register_autograd(_dropout_gradients, setup_context=_save_seed)


def dropout(x: Tensor, rate: float) -> Tensor:
    """``x`` on a GPU, each number 0 with probability ``rate`` and divided by 1 - ``rate`` otherwise."""
    return _dropout(x, rate)[0]
