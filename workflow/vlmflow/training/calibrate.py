"""A data-dependent start for the projector (layer-sequential unit variance, Mishkin & Matas 2016, for two layers)."""

from __future__ import annotations

from typing import Any

import torch

from vlmflow.models.directory import PROJECTOR
from vlmflow.training.samples import Samples


@torch.no_grad()
def calibrate(model: Any, samples: Samples, pictures: int, seed: int) -> None:
    """Fold the standardisation of the tower's features into ``linear_1``; scale ``linear_2`` to the embeddings' spread.

    The tower's channels differ in mean and spread by orders of magnitude, and its features are far larger than word
    embeddings; from such a start most of the projector's training goes into undoing that. Uses the first pictures of a
    seeded permutation of the training records. The function computed is still a plain two-layer projector.
    """
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
