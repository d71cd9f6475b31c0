"""What learns in fine-tuning: low-rank adapters over a 4-bit or plain base, the projector, or all language weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, get_peft_model
from transformers import BitsAndBytesConfig

from vlmflow.models.directory import LANGUAGE, PROJECTOR, VISION, device, load_model
from vlmflow.models.linears import linear_pattern
from vlmflow.training.options import FinetuneOptions
from vlmflow.training.precision import compute_dtype


def load_base(model: Path, options: FinetuneOptions) -> Any:
    """The base model on this process's device, in 4 bits where the method says so.

    Vision tower, projector and output matrix are never quantised. bitsandbytes wants their full names: the short ones
    match nothing and it would quantise the projector too.
    """
    dtype = compute_dtype(options.precision)
    if options.quantization is None:
        return load_model(model, dtype=dtype).to(device())
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=options.quantization["type"],
        bnb_4bit_use_double_quant=options.quantization["double"],
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=[VISION, PROJECTOR, "lm_head"],
    )
    return load_model(model, dtype=dtype, quantization_config=quantization, device_map={"": device()})


def make_trainable(model: Any, options: FinetuneOptions) -> Any:
    """Freeze the base, add what learns, and return the model to train."""
    model.requires_grad_(False)
    if options.lora is not None:
        model = get_peft_model(model, lora_config(options.lora, model.config))
    else:
        model.get_submodule(LANGUAGE).float().requires_grad_(True)
        model.lm_head.float().requires_grad_(True)
    if options.train_projector:
        core = model.get_base_model() if options.lora is not None else model
        core.get_submodule(PROJECTOR).float().requires_grad_(True)
    return model


def lora_config(lora: dict[str, Any], network: Any) -> LoraConfig:
    """Adapters on every linear layer of the language model's blocks, never on the output matrix; maybe on the tower.

    ``network`` is the model's configuration.
    """
    targets = [linear_pattern(network, LANGUAGE)]
    ranks, alphas = {}, {}
    if lora["vision_rank"]:
        targets.append(linear_pattern(network, VISION))
        ranks, alphas = {targets[1]: lora["vision_rank"]}, {targets[1]: lora["vision_alpha"]}
    return LoraConfig(
        r=lora["rank"],
        lora_alpha=lora["alpha"],
        lora_dropout=lora["dropout"],
        target_modules="|".join(targets),
        rank_pattern=ranks,
        alpha_pattern=alphas,
        use_rslora=lora["variant"] == "rslora",
        use_dora=lora["variant"] == "dora",
    )


def dequantise(weight: torch.Tensor, options: FinetuneOptions) -> torch.Tensor:
    """``weight`` in float32 after it went through the 4 bits of ``options``, as :func:`load_base` stores it."""
    assert options.quantization is not None
    packed, state = quantize_4bit(
        weight.to(device(), compute_dtype(options.precision)),
        compress_statistics=options.quantization["double"],
        quant_type=options.quantization["type"],
    )
    return dequantize_4bit(packed, state).float().cpu()


def dequantised_weights(model: Any) -> dict[str, torch.Tensor]:
    """Name -> float32 weight of every 4-bit linear layer of ``model``, on the CPU."""
    return {
        f"{name}.weight": dequantize_4bit(module.weight.data, module.weight.quant_state).float().cpu()
        for name, module in model.named_modules()
        if isinstance(module, Linear4bit)
    }
