"""The loss: cross entropy over supervised tokens, with logits at those positions only."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import cross_entropy, linear
from torch.profiler import record_function
from torch.utils.checkpoint import checkpoint
from transformers.integrations import is_deepspeed_zero3_enabled

from vlmflow.models.directory import PROJECTOR, VISION
from vlmflow.models.families import family_of_model

_ALIGNED = 64  # matrix products on a GPU are seven times slower with 92,553 rows than with 92,608
_TILES = 128  # that a frozen tower sees at a time; what it computes on the way grows with them
_LOGITS = 2048  # supervised tokens whose logits are in memory at a time: 0.8 GB in float32 for 92,553 words


class Objective(torch.nn.Module):
    """Wraps a model so that its forward pass returns the summed loss of a packed micro-batch.

    Only a few percent of the positions of a visual question have labels; the output matrix (92,553 rows in InternVL2)
    is multiplied with those alone, which saves most of the memory of a training step.
    """

    def __init__(self, model: Any, dtype: torch.dtype = torch.float32) -> None:
        """``dtype``: of the arithmetic; what is trained is in float32 whatever it is."""
        super().__init__()
        self.model = model
        self._dtype = dtype
        core = self.core
        self._family = family_of_model(core)
        self._vision_learns = _learns(core.get_submodule(VISION))
        self._projector_learns = self._vision_learns or _learns(core.get_submodule(PROJECTOR))
        self._spread = is_deepspeed_zero3_enabled()
        """Weights are gathered when a layer is called, so all processes must call the same layers as often."""
        self._words = core.lm_head.out_features
        usual = self._spread or _learns(core.lm_head) or core.lm_head.bias is not None
        self._output = None if usual else _aligned(core.lm_head)

    def train(self, mode: bool = True) -> Objective:
        """A tower that does not learn stays in evaluation mode, as when its features are cached."""
        super().train(mode)
        self.core.get_submodule(VISION).train(mode and getattr(self, "_vision_learns", False))
        return self

    @property
    def core(self) -> Any:
        """The transformers model, out of peft's wrapper."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        supervised: torch.Tensor,
        targets: torch.Tensor,
        image_places: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        features: torch.Tensor | None = None,
        **packing: Any,
    ) -> torch.Tensor:
        """``input_ids``, ``position_ids``: (1, tokens); the token after place ``supervised[i]`` is ``targets[i]``;
        ``image_places``: where picture tokens are; ``packing``: see vlmflow.training.attention. Returns a scalar, the
        sum of the loss over the supervised tokens.
        """
        with torch.autocast(input_ids.device.type, self._dtype, enabled=self._dtype != torch.float32):
            embedded = self._embedded(input_ids, image_places, pixel_values, features)
            with record_function("language"):
                hidden = self.core.model.language_model(
                    inputs_embeds=embedded, position_ids=position_ids, use_cache=False, **packing
                ).last_hidden_state
            with record_function("loss"):
                return self._loss(hidden[0, supervised], targets)

    def _embedded(
        self,
        input_ids: torch.Tensor,
        image_places: torch.Tensor,
        pixel_values: torch.Tensor | None,
        features: torch.Tensor | None,
    ) -> torch.Tensor:
        """(1, tokens, hidden): words and pictures."""
        core = self.core
        embedded: torch.Tensor = core.get_input_embeddings()(input_ids)
        if pixel_values is None and features is None and (self._projector_learns or self._spread):
            pixel_values = self._blank(embedded)  # processes of a group must all have gradients for all that learns
        if pixel_values is not None:
            features = self._features(pixel_values)
        if features is not None:
            with record_function("projector"):
                pictures = self._family.project(core, features).to(embedded.dtype)
            if image_places.numel():
                embedded = embedded.index_copy(1, image_places, pictures[None])
            else:
                embedded = embedded + pictures[:0].sum()
        return embedded

    def look(self, batch: dict[str, Any]) -> dict[str, Any]:
        """``batch`` with the features of a frozen tower in place of pixel values: work that waits for no weights."""
        if self._vision_learns or "pixel_values" not in batch:
            return batch
        with torch.autocast(batch["pixel_values"].device.type, self._dtype, enabled=self._dtype != torch.float32):
            features = self._features(batch["pixel_values"])
        return {**{name: value for name, value in batch.items() if name != "pixel_values"}, "features": features}

    def _features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        with record_function("vision"), torch.set_grad_enabled(self._vision_learns and torch.is_grad_enabled()):
            whole = self._vision_learns or self._spread
            parts = [pixel_values] if whole else pixel_values.split(_TILES)
            return torch.cat([self._family.features(self.core, part) for part in parts])

    def _loss(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if len(targets) <= _LOGITS or self._spread:
            return self._cross_entropy(hidden, targets)
        parts = zip(hidden.split(_LOGITS), targets.split(_LOGITS), strict=True)
        losses = [checkpoint(self._cross_entropy, *part, use_reentrant=False) for part in parts]
        return torch.stack(losses).sum()

    def _cross_entropy(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = linear(hidden, self._output) if self._output is not None else self.core.lm_head(hidden)
        return cross_entropy(logits[:, : self._words].float(), targets, reduction="sum")

    def _blank(self, embedded: torch.Tensor) -> torch.Tensor:
        side = self.core.config.vision_config.image_size
        height, width = (side, side) if isinstance(side, int) else side
        return embedded.new_zeros(1, 3, height, width)


def _learns(module: torch.nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _aligned(head: torch.nn.Linear) -> torch.Tensor:
    """The output matrix with rows of zeros below, a multiple of 64 in all; ``head`` keeps its own rows as a view."""
    words, width = head.weight.shape
    matrix = head.weight.new_zeros(-(-words // _ALIGNED) * _ALIGNED, width)
    matrix[:words] = head.weight.data
    head.weight.data = matrix[:words]
    return matrix
