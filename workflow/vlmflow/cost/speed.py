"""How long a micro-batch takes on a card: operations over what the card reaches, and what each one costs besides."""

from __future__ import annotations

from dataclasses import dataclass

from vlmflow.cost.cards import peak_flops
from vlmflow.cost.estimate import GIB, step_flops
from vlmflow.cost.shape import Shape
from vlmflow.cost.workload import Training
from vlmflow.errors import UserError

REACHED = 0.49
"""Share of a card's nominal rate that a long micro-batch reaches: matrix products alone reach 0.80 on an H200 (790 of
989 TFLOP/s), norms, activations and attention take the rest."""
OVERHEAD = {True: 0.00065, False: 0.004}
"""Seconds per layer and micro-batch, compiled and not: launching kernels, reading weights. A layer of a frozen tower
counts for a third, having no backward pass. Both fitted to InternVL2-2B on an H200 (LoRA of rank 128, 7 tiles a
sample): 22.6 samples/s with 16,384 and with 32,768 tokens a micro-batch, 15.0 in 4 bits with 8,192 and all layers
recomputed."""
DEQUANTISED_BYTES = 30
"""Memory traffic per 4-bit weight and micro-batch: 11 ms for 1.5 billion on an H200 of 4.3 TB/s (bf16 against nf4)."""
ZERO3 = 0.26
"""Speed of ZeRO-3 against ZeRO-2 with adapters: 5.7 against 22.3 samples/s on two H200 (1.7 billion parameters)."""
CPU_FLOPS = 0.064e12
"""Of a core with AVX2, float32; the demo's training reaches 36 GFLOP/s a core, :data:`REACHED` of it."""
_FLOAT32 = 1 / 8
"""Rate in float32 against that in 16 bits, roughly, on all cards."""


@dataclass(frozen=True)
class Card:
    """A GPU, or a number of CPU cores."""

    name: str
    flops: float
    """Nominal FLOP/s in 16 bits; of a CPU in float32."""
    memory: float
    """Bytes."""
    bandwidth: float
    """Bytes per second."""


def _card(name: str, device: str, gib: float, gigabytes_per_second: float) -> Card:
    return Card(name, peak_flops(device) or 0.0, gib * GIB, gigabytes_per_second * 1e9)


CARDS = {
    card.name: card
    for card in (
        _card("T4", "T4", 15, 300),
        _card("A6000", "A6000", 47.5, 768),
        _card("RTX3090", "RTX 3090", 23.7, 936),
        _card("V100", "V100", 31.7, 900),
        _card("RTX4090", "RTX 4090", 23.6, 1008),
        _card("L40S", "L40S", 44.5, 864),
        _card("A100-40", "A100", 39.5, 1555),
        _card("A100-80", "A100", 79.3, 2039),
        _card("H100", "H100", 79.2, 3350),
        _card("H200", "H200", 139.8, 4800),
    )
}
"""Name (as `resources.gpu_model` has it) -> card, the slowest first. Memory is what CUDA reports, bandwidth nominal."""
ASSUMED = "A100-80"
"""The card of a stage that names none."""


def card_named(name: str | None) -> Card:
    """The card ``name``, :data:`ASSUMED` if None; raises :class:`UserError` for one that is not in the table."""
    name = name or ASSUMED
    if name not in CARDS:
        raise UserError(
            f"no such GPU in the table: {name}", f"there is {', '.join(CARDS)}", field="resources.gpu_model"
        )
    return CARDS[name]


def cpu(cores: int, memory: float) -> Card:
    """A machine without a GPU; ``memory`` in bytes."""
    return Card("CPU", CPU_FLOPS * cores, memory, 10e9 * cores)


def seconds(
    shape: Shape,
    training: Training,
    card: Card,
    tokens: int,
    attention_pairs: float,
    tiles: int,
    supervised: int,
    checkpointed: int,
    zero_stage: int = 0,
) -> float:
    """Time of a micro-batch, forward and backward, on one of the processes; arguments as of ``step_flops``."""
    flops = step_flops(shape, training, tokens, attention_pairs, tiles, supervised, checkpointed)
    on_gpu = card.name != "CPU"
    rate = card.flops * REACHED * (_FLOAT32 if on_gpu and training.number_bytes == 4 else 1)
    tower = shape.tower.read_layers * (1 if training.vision_learns else 1 / 3) * (tiles > 0)
    layers = shape.language.blocks.layers + checkpointed / 3 + tower
    time = flops / rate + on_gpu * layers * OVERHEAD[training.compiled]
    if training.quantised:
        again = 1 + checkpointed / (2 * shape.language.blocks.layers)
        time += again * DEQUANTISED_BYTES * shape.language.blocks.weights / card.bandwidth
    return time / (ZERO3 if zero_stage == 3 else 1)
