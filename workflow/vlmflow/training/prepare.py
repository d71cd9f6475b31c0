"""A model made ready to train fast: packed attention, fused adapters, compiled layers, recomputed activations."""

from __future__ import annotations

import functools
import types
from typing import Any

import torch
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from vlmflow.models.directory import LANGUAGE, VISION
from vlmflow.training.attention import use_packed_attention
from vlmflow.training.fused import Group, fuse_adapters

_COMPILED = "compiled"


def prepare(core: Any, dtype: torch.dtype, fuse: bool, compiled: bool) -> list[Group]:
    """``core``: the transformers model, adapters inside. ``fuse``: adapters and patch embedding are computed in our own
    way, which reads parameters outside of their layers' calls (ZeRO-3 must not). ``compiled``: layer by layer, so that
    all layers of a kind share what was compiled. Returns the groups of adapters that were made.
    """
    groups: list[Group] = []
    language, tower = core.get_submodule(LANGUAGE), core.get_submodule(VISION)
    use_packed_attention(language)
    if fuse:
        groups = fuse_adapters(language, dtype)
        _embed_patches_by_product(tower)
    if compiled:
        torch._dynamo.config.cache_size_limit = 64  # kinds of layers x with and without gradients x shapes
        for layer in (*_layers(language), *_layers(tower)):
            layer.compile()
    return groups


def recompute(core: Any, layers: int) -> None:
    """Let the first ``layers`` layers of the language model compute their activations again in the backward pass.

    With all of them, a tower that learns does so too. Frozen layers keep nothing anyway.
    """
    language, tower = _layers(core.get_submodule(LANGUAGE)), _layers(core.get_submodule(VISION))
    for place, layer in enumerate(language):
        _set_recompute(layer, place < layers)
    for layer in tower:
        learns = any(parameter.requires_grad for parameter in layer.parameters())
        _set_recompute(layer, learns and layers >= len(language))


def _layers(part: torch.nn.Module) -> list[Any]:
    return [module for module in part.modules() if isinstance(module, GradientCheckpointingLayer)]


def _set_recompute(layer: Any, on: bool) -> None:
    """Around what was compiled: torch.compile gives up on a layer whose recomputation it would have to look into."""
    again = functools.partial(checkpoint, use_reentrant=False)
    compiled = getattr(layer._compiled_call_impl, _COMPILED, layer._compiled_call_impl)
    if compiled is None:
        layer.gradient_checkpointing, layer._gradient_checkpointing_func = on, again
        return
    twice = functools.partial(again, compiled)
    setattr(twice, _COMPILED, compiled)
    layer._compiled_call_impl = twice if on else compiled


def _embed_patches_by_product(tower: torch.nn.Module) -> None:
    """A convolution whose patches do not overlap is a matrix product; cuDNN's convolution takes ten times its time."""
    for module in tower.modules():
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size == module.stride and module.groups == 1:
            module.forward = types.MethodType(_patches, module)


def _patches(convolution: torch.nn.Conv2d, pixels: torch.Tensor) -> torch.Tensor:
    """(pictures, channels, height, width) -> (pictures, features, rows, columns)."""
    side_y, side_x = convolution.kernel_size
    pictures, channels, height, width = pixels.shape
    rows, columns = height // side_y, width // side_x
    cut = pixels[..., : rows * side_y, : columns * side_x]
    cut = cut.reshape(pictures, channels, rows, side_y, columns, side_x).permute(0, 2, 4, 1, 3, 5).flatten(3)
    return linear(cut, convolution.weight.flatten(1), convolution.bias).permute(0, 3, 1, 2)
