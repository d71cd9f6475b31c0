"""Causal attention over packed samples: each sees itself alone, and nothing is padded where the kernel allows."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "vlmflow_packed"


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    *,
    cu_seqlens: torch.Tensor,
    max_length: int,
    places: torch.Tensor,
    slots: torch.Tensor,
    table: bool,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention function of transformers' interface. ``query``: (1, heads, tokens, width), ``key`` and ``value`` with
    heads of their own number; returns (1, tokens, heads, width).

    ``cu_seqlens`` (samples + 1,) int32: where samples begin; ``max_length``: at least the longest one's tokens;
    ``places`` (tokens,) int64: place of each token in a (samples, max_length) table; ``slots`` (samples x max_length,):
    the token at each place of it, -1 where there is none; ``table``: whether these are few.

    On a GPU cuDNN's kernel, which wants the table, takes half the time of flash attention 2, which does not (forward
    and backward of 8 x 2,048 tokens on an H200).
    """
    del module, attention_mask
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    window = sliding_window if sliding_window is not None and sliding_window < max_length else None
    if not table and q.dtype in (torch.bfloat16, torch.float16) and _has_flash(q.device):
        output = torch.ops.aten._flash_attention_forward(
            q.contiguous(), k.contiguous(), v.contiguous(), cu_seqlens, cu_seqlens, max_length, max_length,
            0.0, True, False, scale=scaling, window_size_left=None if window is None else window - 1,
            window_size_right=None if window is None else 0,
        )[0]  # fmt: skip
        return output[None], None
    return _padded(q, k, v, scaling, window, len(cu_seqlens) - 1, max_length, places, slots)[None], None


@functools.cache
def _has_flash(device: torch.device) -> bool:
    """Flash attention 2 wants the matrix units of Ampere and later."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def _padded(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float | None, window: int | None,
    samples: int, max_length: int, places: torch.Tensor, slots: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """The same as rows of a table, filled up on the right: causality keeps real tokens from looking there."""
    full = len(places) == len(slots)
    table = (q, k, v) if full else (_Moved.apply(tensor, slots, places) for tensor in (q, k, v))
    queries, keys, values = (tensor.unflatten(0, (samples, max_length)).transpose(1, 2) for tensor in table)
    mask = None
    if window is not None:
        distance = torch.arange(max_length, device=q.device)[:, None] - torch.arange(max_length, device=q.device)
        mask = (distance >= 0) & (distance < window)
    output = scaled_dot_product_attention(
        queries,
        keys,
        values,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    flat = output.transpose(1, 2).flatten(0, 1)
    return flat if full else _Moved.apply(flat, places, slots)


class _Moved(torch.autograd.Function):
    """Rows taken by ``index`` (0 where it is -1), whose gradients are taken by ``inverse``.

    Indexing alone would add gradients up one by one, as if a row could be taken twice.
    """

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, index: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(inverse)
        return _take(rows, index)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _take(grad, *ctx.saved_tensors), None, None


def _take(rows: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    there = (index >= 0).view(-1, *[1] * (rows.dim() - 1))
    return torch.where(there, rows[index.clamp(min=0)], 0)


def use_packed_attention(language_model: Any) -> None:
    """Let a language model of transformers attend by :func:`packed_attention`; its mask functions are then unused."""
    AttentionInterface.register(NAME, packed_attention)
    language_model.config._attn_implementation = NAME
