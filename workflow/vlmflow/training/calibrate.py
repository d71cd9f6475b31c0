"""A data-dependent start for the projector (layer-sequential unit variance, Mishkin & Matas 2016, for two layers)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from transformers.integrations import is_deepspeed_zero3_enabled

from vlmflow.models.directory import PROJECTOR, VISION
from vlmflow.training.samples import Samples


@torch.no_grad()
def calibrate(model: Any, samples: Samples, pictures: int, seed: int) -> None:
    """Fold the standardisation of the tower's features into ``linear_1``; scale ``linear_2`` to the embeddings' spread.

    The tower's channels differ in mean and spread by orders of magnitude, and its features are far larger than word
    embeddings; from such a start most of the projector's training goes into undoing that. Uses the first pictures of a
    seeded permutation of the training records. The function computed is still a plain two-layer projector.
    """
    with _whole(model):
        _calibrate(model, samples, pictures, seed)


def _whole(model: Any) -> AbstractContextManager[Any]:
    """While this lasts, all processes have what is needed of the weights that ZeRO-3 has spread over them."""
    if not is_deepspeed_zero3_enabled():
        return nullcontext()
    from deepspeed import zero

    parts = (model.get_submodule(VISION), model.get_submodule(PROJECTOR), model.get_input_embeddings())
    gathered = zero.GatheredParameters([weight for part in parts for weight in part.parameters()], modifier_rank=0)
    return cast(AbstractContextManager[Any], gathered)


def _calibrate(model: Any, samples: Samples, pictures: int, seed: int) -> None:
    projector = model.get_submodule(PROJECTOR)
    features: list[torch.Tensor] = []
    hook = projector.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    records = samples.with_pictures()
    order = torch.randperm(len(records), generator=torch.Generator().manual_seed(seed))[:pictures]
    device = projector.linear_1.weight.device
    for index in order.split(64):
        values = torch.cat([samples.sample(*records[int(i)])["pixel_values"] for i in index])
        with torch.autocast(device.type, model.dtype, enabled=model.dtype != torch.float32):
            model.model.get_image_features(values.to(device, model.dtype))
    hook.remove()
    flat = torch.cat(features).flatten(0, -2).float()
    mean, spread = flat.mean(0), flat.std(0).clamp(min=1e-6)
    first, second = projector.linear_1, projector.linear_2
    first.weight.copy_(first.weight / spread)
    first.bias.sub_(first.weight @ mean.to(first.weight))
    target = model.get_input_embeddings().weight.float().std()
    gain = target / projector(flat.to(first.weight)).float().std()
    second.weight.mul_(gain)
    second.bias.mul_(gain)
