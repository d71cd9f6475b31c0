"""What learns in fine-tuning: low-rank adapters over a 4-bit or plain base, and whole parts of the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, get_peft_model
from transformers import BitsAndBytesConfig
from transformers.integrations import is_deepspeed_zero3_enabled

from vlmflow.errors import UserError
from vlmflow.models.directory import LANGUAGE, PROJECTOR, VISION, device, load_model
from vlmflow.models.linears import linear_pattern
from vlmflow.training.options import FinetuneOptions, TrainingOptions
from vlmflow.training.parts import load_parts, train_parts, trained_in_full, unused_vision
from vlmflow.training.precision import compute_dtype


def load_base(model: Path, options: TrainingOptions, pretrained: Path | None = None) -> Any:
    """The base model on this process's device, with the weights of ``pretrained``; in 4 bits where the method says so.

    Both are manifests. Vision tower, projector and output matrix are never quantised. bitsandbytes wants their full
    names: the short ones match nothing and it would quantise the projector too. With ZeRO-3 the weights are spread over
    the processes as they are read, and stay where DeepSpeed has put them.
    """
    dtype = compute_dtype(options.precision)
    if isinstance(options, FinetuneOptions) and options.quantization is not None:
        if is_deepspeed_zero3_enabled():
            raise UserError("ZeRO-3 cannot spread weights in 4 bits", "use zero2, or method: lora", field="deepspeed")
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=options.quantization["type"],
            bnb_4bit_use_double_quant=options.quantization["double"],
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=[VISION, PROJECTOR, "lm_head"],
        )
        network = load_model(model, dtype=dtype, quantization_config=quantization, device_map={"": device()})
        _keep_unpacked(network)
    else:
        network = load_model(model, dtype=dtype)
        if not is_deepspeed_zero3_enabled():
            network.to(device())
    if pretrained is not None:
        load_parts(network, pretrained)
    return network


def _keep_unpacked(network: Any) -> None:
    """Keep bitsandbytes from packing weights anew in evaluation on a CPU with bfloat16 units (Linear4bit.forward).

    It would compute in bfloat16 then, whatever was asked for, and DoRA would take the packed weights for plain ones.
    """
    for module in network.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def make_trainable(model: Any, options: FinetuneOptions) -> Any:
    """Freeze the base, add what learns, and return the model to train.

    What learns is in float32; with ZeRO-3 in the base's format, as DeepSpeed keeps float32 values of its own and takes
    one format only.
    """
    model.requires_grad_(False)
    wrapped = model
    if options.lora is not None:
        config = lora_config(options.lora, model.config)
        wrapped = get_peft_model(model, config, autocast_adapter_dtype=not is_deepspeed_zero3_enabled())
    train_parts(model, trained_in_full(options))
    return wrapped


def lora_config(lora: dict[str, Any], network: Any) -> LoraConfig:
    """Adapters on every linear layer of the language model's blocks, never on the output matrix; maybe on the tower.

    ``network`` is the model's configuration. Blocks of the tower that come after the hidden state which the projector
    reads get none: they would never learn.
    """
    targets = [linear_pattern(network, LANGUAGE)]
    ranks, alphas = {}, {}
    if lora["vision_rank"]:
        targets.append(linear_pattern(network, VISION, unused_vision(network)))
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
