"""The loss: cross entropy over supervised tokens, with logits at those positions only."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import cross_entropy

from vlmflow.models.template import IGNORED


class Objective(torch.nn.Module):
    """Wraps a model so that its forward pass returns the summed loss of a batch.

    Only a few percent of the positions of a visual question have labels; the output matrix (92,553 rows in InternVL2)
    is multiplied with those alone, which saves most of the memory of a training step.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, labels: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        """``labels``: (batch, length), :data:`IGNORED` where not trained. Returns a scalar, the sum over tokens."""
        core = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        hidden = core.model(**inputs, use_cache=False).last_hidden_state
        targets = labels[:, 1:]
        supervised = targets != IGNORED
        logits = core.lm_head(hidden[:, :-1][supervised])
        return cross_entropy(logits.float(), targets[supervised], reduction="sum")
