"""What a training stage computes and how it is shared out: all that its cost depends on besides the model. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vlmflow.cost.shape import Shape
from vlmflow.training.options import FinetuneOptions, PretrainOptions


@dataclass(frozen=True, kw_only=True)
class Training:
    """What learns, in which number formats, and by which code: all of a stage that its cost depends on."""

    projector: bool = True
    language: bool = False
    """All weights of the language model."""
    vision: bool = False
    """All weights of the vision tower."""
    rank: int = 0
    """Of adapters on the language model; 0 for none."""
    vision_rank: int = 0
    dropout: bool = False
    """On the input of adapters."""
    dora: bool = False
    quantised: bool = False
    """Language model's linear layers in 4 bits."""
    double: bool = True
    number_bytes: int = 2
    """Of a frozen weight and of an activation."""
    compiled: bool = True
    fused: bool = True
    """Adapters of layers with the same input are computed together (vlmflow.training.fused)."""

    @classmethod
    def of(
        cls, options: PretrainOptions | FinetuneOptions, *, number_bytes: int = 2, compiled: bool = True
    ) -> Training:
        """That of a stage."""
        common: dict[str, Any] = {"number_bytes": number_bytes, "compiled": compiled}
        if isinstance(options, PretrainOptions):
            return cls(**{part: part in options.train for part in ("projector", "vision", "language")}, **common)
        full = options.method == "full"
        lora = options.lora or {"rank": 0, "vision_rank": 0, "dropout": 0, "variant": "lora"}
        return cls(
            projector=options.train_projector,
            language=full,
            vision=full and options.train_vision,
            rank=lora["rank"],
            vision_rank=lora["vision_rank"],
            dropout=lora["dropout"] > 0,
            dora=lora["variant"] == "dora",
            quantised=options.quantization is not None,
            double=(options.quantization or {"double": True})["double"],
            fused=lora["variant"] != "dora",
            **common,
        )

    @property
    def vision_learns(self) -> bool:
        return self.vision or self.vision_rank > 0

    @property
    def reaches_embeddings(self) -> bool:
        """Whether what learns lies before or in the language model's first layer's input."""
        return self.projector or self.language or self.vision_learns


@dataclass(frozen=True)
class Split:
    """How the samples of a step go through a GPU."""

    micro_batch_size: int
    checkpointed_layers: int
    """Layers of the language model, counted from the first, whose activations are computed again. The first ones:
    when their turn comes in the backward pass, what the others kept is free."""


@dataclass(frozen=True)
class Parallel:
    """The processes that share a step; ``zero_stage`` 0 is plain data parallelism."""

    gpus: int = 1
    zero_stage: int = 0
    offload: bool = False
    """The optimizer's state is in main memory."""
    bucket: int = 500_000_000
    """Numbers per message between processes (DeepSpeed's reduce_bucket_size)."""

    @classmethod
    def of(cls, gpus: int, deepspeed: dict[str, Any] | None) -> Parallel:
        """From the content of a DeepSpeed configuration, if there is one."""
        zero = (deepspeed or {}).get("zero_optimization", {})
        offload = zero.get("offload_optimizer", {}).get("device", "none") != "none"
        bucket = zero.get("reduce_bucket_size", cls.bucket)
        return cls(gpus, zero.get("stage", 0), offload, bucket if isinstance(bucket, int) else cls.bucket)


ALONE = Parallel()
"""One process."""


def trained_parameters(shape: Shape, training: Training) -> int:
    """Number of parameters that learn."""
    blocks, tower = shape.language.blocks, shape.tower.read
    return (
        training.projector * shape.projector.parameters
        + training.language * shape.language.parameters
        + training.vision * shape.tower.trainable
        + blocks.adapter_parameters(training.rank, training.dora)
        + tower.adapter_parameters(training.vision_rank, training.dora)
    )
