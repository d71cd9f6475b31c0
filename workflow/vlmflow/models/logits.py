"""Do two models compute the same? Logits on fixed prompts with pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from vlmflow.data.records import Turn
from vlmflow.models.pictures import picture_lengths, pixel_values
from vlmflow.models.template import encode_prompt

_QUESTIONS = (
    "<image>\nWhat is in this picture?",
    "<image>\nDescribe the picture in one sentence.",
    "<image>\n这张图里有什么？",
    "What is the capital of France?",
)


@dataclass(frozen=True)
class LogitsDifference:
    """How far two models are apart on the fixture prompts."""

    max_abs: float
    mean_abs: float
    scale: float
    """Largest absolute logit, to judge the differences by."""
    argmax_agreement: float
    """Share of positions where both prefer the same next token."""


@torch.no_grad()
def fixture_logits(model: Any, processor: Any) -> list[torch.Tensor]:
    """(length, vocabulary) float32 logits of every fixture prompt; the pictures are seeded smooth noise."""
    noise = np.random.default_rng(0).integers(0, 256, (len(_QUESTIONS), 8, 8, 3), dtype=np.uint8)
    device = next(model.parameters()).device
    logits = []
    for question, pixels in zip(_QUESTIONS, noise, strict=True):
        pictures = [Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC)] if "<image>" in question else []
        counts = picture_lengths(processor, [picture.size for picture in pictures])
        inputs = {"input_ids": torch.tensor([encode_prompt(processor.tokenizer, [Turn("user", question)], counts)])}
        if pictures:
            inputs["pixel_values"] = pixel_values(processor, pictures).to(model.dtype)
        output = model(**{name: value.to(device) for name, value in inputs.items()}, use_cache=False)
        logits.append(output.logits[0].float().cpu())
    return logits


def compare_logits(one: list[torch.Tensor], other: list[torch.Tensor]) -> LogitsDifference:
    """Compare two results of :func:`fixture_logits`."""
    first, second = torch.cat(one), torch.cat(other)
    difference = (first - second).abs()
    return LogitsDifference(
        max_abs=difference.max().item(),
        mean_abs=difference.mean().item(),
        scale=first.abs().max().item(),
        argmax_agreement=(first.argmax(-1) == second.argmax(-1)).float().mean().item(),
    )
