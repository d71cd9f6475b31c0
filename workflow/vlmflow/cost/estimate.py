"""What an optimizer step costs: floating-point operations, and GPU memory by its parts. Arithmetic only, no torch.

The coefficients are the constants and :func:`saved_numbers` below; they were fitted to runs on an H200, which
tests/unit/test_estimate.py lists with the error of each.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from vlmflow.cost.blocks import Blocks
from vlmflow.cost.shape import Shape
from vlmflow.cost.workload import ALONE, Parallel, Split, Training, trained_parameters

GIB = 2**30
LOGIT_BYTES = 2 + 4 + 4
"""The product, in float32, its gradient."""
LOGITS_AT_ONCE = 2048
"""Supervised tokens whose logits are in memory at a time (vlmflow.training.objective)."""
NF4_BYTES = {True: 0.5 + 1 / 64 + 4 / (64 * 256), False: 0.5 + 4 / 64}
"""Of a 4-bit weight, by double quantisation: a block of 64 shares a scale, in 8 bits or float32 (Dettmers 2023)."""
WORKSPACE = 0.2 * GIB
"""cuBLAS workspaces, buffers of the libraries."""
LIVE_PARAMETERS = 10**9
"""Parameters that ZeRO-3 keeps gathered at a time (DeepSpeed's stage3_max_live_parameters)."""


@dataclass(frozen=True)
class Memory:
    """GPU memory of one process at its peak, in bytes."""

    weights: float
    """Frozen weights, and the copies of trained ones in the number format of the arithmetic."""
    adapters: float
    """Trained parameters: adapters, projector, whatever is trained in full."""
    gradients: float
    optimizer: float
    activations: float
    logits: float
    vision: float
    """Pictures and features; a trained tower's activations; what a frozen tower needs beyond what is free by then."""
    reserve: float
    """Workspaces, one layer out of 4 bits, messages between processes."""

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))


def step_flops(
    shape: Shape,
    training: Training,
    tokens: int,
    attention_pairs: float,
    tiles: int,
    supervised: int,
    checkpointed: int = 0,
    cached: bool = False,
) -> float:
    """Floating-point operations of forward and backward pass; a multiplication and an addition are two.

    ``attention_pairs``: of a query and a key that it sees, n(n + 1) / 2 for a sample of n tokens. ``checkpointed``
    layers count their recomputation (with all of them, that of a tower that learns too); 0 for model FLOPs, of which
    MFU is made. ``cached``: the tower's features are read, not computed. Counts matrix products, as
    torch.utils.flop_counter does.
    """
    blocks, tower = shape.language.blocks, shape.tower
    layers = _blocks_forward(blocks, tokens, attention_pairs, training.rank)
    flops = layers * (1 + checkpointed / blocks.layers)
    flops += _blocks_backward(
        blocks, tokens, attention_pairs, training.rank, training.language, training.reaches_embeddings
    )
    flops += 2 * shape.language.table * supervised * (3 if training.language else 2)
    if not cached:
        seen, pairs = tiles * tower.tokens, tiles * tower.tokens**2
        embedding = 2 * tiles * tower.patches * tower.patch_values * tower.blocks.hidden
        flops += embedding * (2 if training.vision else 1)
        again = training.vision_learns and checkpointed >= blocks.layers
        flops += _blocks_forward(tower.read, seen, pairs, training.vision_rank) * (1 + again)
        if training.vision_learns:
            flops += _blocks_backward(tower.read, seen, pairs, training.vision_rank, training.vision, training.vision)
    return flops + _projector(shape, training, tiles * shape.tile_tokens)


def _blocks_forward(blocks: Blocks, tokens: int, pairs: float, rank: int) -> float:
    adapters = blocks.adapter_parameters(rank)
    return 2 * tokens * (blocks.weights + adapters) + 4 * blocks.layers * blocks.query * pairs


def _blocks_backward(
    blocks: Blocks, tokens: int, pairs: float, rank: int, trained: bool, input_gradient: bool
) -> float:
    """Gradients of all inputs, the first layer's only with ``input_gradient``, and of what is trained."""
    inputs = 2 * tokens * blocks.weights
    if not input_gradient:
        inputs -= 2 * tokens * sum(linear.weights + rank * linear.inputs for linear in blocks.before_attention)
    weights = 2 * tokens * blocks.weights * trained
    return inputs + weights + 4 * tokens * blocks.adapter_parameters(rank) + 8 * blocks.layers * blocks.query * pairs


def _projector(shape: Shape, training: Training, tokens: int) -> float:
    first, second = (2 * tokens * linear.weights for linear in shape.projector.linears)
    flops = first + second
    if training.projector:
        flops += first + 2 * second
    elif training.vision_learns:
        flops += second
    if training.vision_learns or (training.projector and shape.projector.norm):
        flops += first
    return flops


def saved_numbers(blocks: Blocks, training: Training, rank: int, trained: bool) -> dict[str, float]:
    """What a layer keeps for the backward pass, in numbers per token, by name."""
    hidden, query, key_value, ffn = blocks.hidden, blocks.query, blocks.key_value, blocks.ffn
    groups = 2 * hidden + query + ffn  # inputs of query/key/value, output, gate/up, down
    single = sum(linear.inputs for linear in blocks.linears)
    kept = {
        "inputs of the norms": 2.0 * hidden * (2 if trained else 1),  # float32 where all weights are
        "queries, keys, values, attention output": 2 * query + 2 * key_value,
        "inputs of the activation": sum(linear.outputs for linear in blocks.after_attention[1:-1]),
    }
    if rank or trained:
        kept["inputs of the linear layers"] = groups - query  # the attention output is there already
    if rank:
        kept["low-rank products"] = rank * len(blocks.linears)
    if rank and training.fused:  # the values are a view of one product, which so stays as a whole
        kept["queries and keys before rotation"] = query + key_value
    if rank and training.dropout:
        inputs = groups if training.fused else single
        kept["inputs after dropout"] = query + inputs - groups  # in place of those before, but for one
        kept["dropout masks"] = 0 if training.fused else inputs / 2  # a byte each, or drawn again
    if not training.compiled:
        kept["float32 in the norms"] = 4 * hidden
        kept["output of the activation"] = ffn
    return kept


def memory(
    shape: Shape,
    training: Training,
    split: Split,
    tokens: int,
    tiles: int,
    supervised: int,
    parallel: Parallel = ALONE,
    accumulating: bool = True,
) -> Memory:
    """GPU memory of a process with micro-batches of ``split`` whose records have ``tokens``, ``tiles``, ``supervised``.

    ``accumulating``: gradients of an earlier micro-batch are there when activations are at their peak.
    """
    records, layers = split.micro_batch_size, shape.language.blocks.layers
    if parallel.zero_stage == 3:
        training = replace(training, fused=False)  # it needs parameters outside of their layers' calls
    held = _held(shape, training, parallel, accumulating)
    logits = LOGIT_BYTES * shape.language.vocabulary * min(supervised * records, LOGITS_AT_ONCE)
    forward, backward = _activations(shape, training, split.checkpointed_layers, tokens * records, tiles * records)
    activations = max(forward, backward - logits)
    kept, passing = _vision(shape, training, tiles * records, split.checkpointed_layers >= layers)
    vision = kept + max(0.0, passing - activations - logits)
    return Memory(**held, activations=activations, logits=logits, vision=vision)


def _held(shape: Shape, training: Training, parallel: Parallel, accumulating: bool) -> dict[str, float]:
    """Bytes that do not depend on the micro-batch."""
    blocks, size = shape.language.blocks, training.number_bytes
    learning = trained_parameters(shape, training)
    added = trained_parameters(shape, replace(training, projector=False, language=False, vision=False))
    frozen = shape.parameters - (learning - added)
    weights: float = size * frozen
    if training.quantised:
        weights += blocks.weights * (NF4_BYTES[training.double] - size)
    if size < 4:  # autocast keeps a copy of each trained matrix
        weights += size * (blocks.weights * training.language + shape.tower.read.weights * training.vision)
    stage, share = parallel.zero_stage, 1 / parallel.gpus
    reserve: float = WORKSPACE
    if training.quantised:
        reserve += size * max(linear.weights for linear in blocks.linears)
    if parallel.gpus > 1:
        reserve += 4 * learning if not stage else 2 * size * parallel.bucket
    if stage == 3:
        reserve += size * min(LIVE_PARAMETERS, frozen)
    return {
        "weights": weights * (share if stage == 3 else 1),
        "adapters": 4 * learning * (share if stage == 3 else 1),
        "gradients": 4 * learning * (share if stage >= 2 else 1) * accumulating,
        "optimizer": 8 * learning * (share if stage >= 1 else 1) * (not parallel.offload),
        "reserve": reserve,
    }


def _activations(shape: Shape, training: Training, checkpointed: int, tokens: int, tiles: int) -> tuple[float, float]:
    """Bytes at the end of the forward pass, and when the last recomputed layer goes backward (logits are free then)."""
    blocks, size = shape.language.blocks, training.number_bytes
    layer = sum(saved_numbers(blocks, training, training.rank, training.language).values())
    entry = blocks.hidden * (2 if training.language else 1)
    around = tokens * 3 * entry  # embeddings, input and output of the last norm
    if training.projector or training.vision_learns:
        around += tiles * shape.tile_tokens * (shape.projector.linears[0].inputs + 3 * blocks.hidden)
    forward = around + tokens * (checkpointed * entry + (blocks.layers - checkpointed) * layer)
    backward = around + tokens * (checkpointed * entry + layer) if checkpointed else 0
    return size * forward, size * backward


def _vision(shape: Shape, training: Training, tiles: int, recomputed: bool) -> tuple[float, float]:
    """Bytes of the tower that stay until the backward pass, and at the peak of its own forward pass.

    A tower that learns is ``recomputed`` where the whole language model is.
    """
    tower, size = shape.tower, training.number_bytes
    seen, hidden = size * tiles * tower.tokens, tower.blocks.hidden
    kept = size * tiles * tower.patches * tower.patch_values + seen * hidden
    if not training.vision_learns:
        return kept, seen * (2 * tower.blocks.ffn + 3 * hidden)
    layer = sum(saved_numbers(tower.blocks, training, training.vision_rank, training.vision).values())
    inputs = tower.read_layers * hidden
    return (kept + seen * inputs, seen * layer) if recomputed else (kept + seen * tower.read_layers * layer, 0.0)
