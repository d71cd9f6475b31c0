"""How a step is cut into micro-batches: as fast as the memory allows, or what would have to change so that it fits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from vlmflow.cost.estimate import GIB, Memory, memory
from vlmflow.cost.shape import Shape
from vlmflow.cost.speed import ASSUMED, CARDS, seconds
from vlmflow.cost.workload import ALONE, Parallel, Split, Training
from vlmflow.errors import UserError

USABLE = 0.9
"""Share of a card that is planned with: the estimate may be off, and freed memory is not all of one piece."""
ON_CPU = 8
"""Longest records in a micro-batch where a GPU's memory is not the limit."""
Longest = tuple[int, int, int]
"""(tokens, tiles, supervised tokens) of the longest record, each the most of any."""


@dataclass(frozen=True)
class Case:
    """What :func:`choose` decides about."""

    shape: Shape
    training: Training
    longest: Longest
    limit: float
    share: int
    """Samples of a step for one process."""
    parallel: Parallel

    def memory(self, split: Split) -> Memory:
        """At the peak, on one process."""
        accumulating = split.micro_batch_size < self.share
        return memory(self.shape, self.training, split, *self.longest, self.parallel, accumulating)

    def fits(self, split: Split) -> bool:
        return self.memory(split).total <= self.limit

    @property
    def smallest(self) -> Split:
        """One record at a time, and all layers recomputed."""
        return Split(1, self.shape.language.blocks.layers)


def choose(
    shape: Shape,
    training: Training,
    longest: Longest,
    limit_bytes: float,
    batch_share: int,
    *,
    micro_batch_size: int | None = None,
    checkpointing: bool | int | str = "auto",
    parallel: Parallel = ALONE,
) -> Split:
    """The split with the best predicted speed whose memory is within ``limit_bytes``.

    ``batch_share``: samples of a step for one process. ``micro_batch_size``: at most so many (None: the share).
    ``checkpointing`` as ``resources.gradient_checkpointing``: "auto", all (true), none, or a number of layers.
    Speeds are those of one card for all, so that a plan shows what training will choose; that costs other cards 4% at
    most. Raises :class:`UserError` if nothing fits, with what would.
    """
    case = Case(shape, training, longest, limit_bytes, batch_share, parallel)
    layers = shape.language.blocks.layers
    allowed = range(layers + 1) if checkpointing == "auto" else (_layers(checkpointing, layers),)
    splits = [
        found
        for size in _sizes(batch_share, micro_batch_size)
        if (found := _first_that_fits(case, size, allowed)) is not None
    ]
    if not splits:
        raise UserError(_reason(case, allowed), "; or ".join(_advice(case, allowed)) or "take a smaller model")
    if micro_batch_size is not None:
        return splits[0]
    return min(splits, key=lambda split: (_step_seconds(case, split), split.micro_batch_size))


def _layers(checkpointing: bool | int | str, layers: int) -> int:
    return layers * checkpointing if isinstance(checkpointing, bool) else min(int(checkpointing), layers)


def _sizes(share: int, wanted: int | None) -> list[int]:
    """Micro-batch sizes to try: all, or ``wanted`` and its halves, the largest first."""
    if wanted is None:
        return list(range(share, 0, -1))
    first = min(wanted, share)
    return [first >> halvings for halvings in range(first.bit_length())]


def _first_that_fits(case: Case, size: int, allowed: Sequence[int]) -> Split | None:
    """With as few recomputed layers as possible."""
    return next((Split(size, count) for count in allowed if case.fits(Split(size, count))), None)


def _step_seconds(case: Case, split: Split) -> float:
    size, (tokens, tiles, supervised) = split.micro_batch_size, case.longest
    pairs = size * tokens * (tokens + 1) / 2
    each = seconds(case.shape, case.training, CARDS[ASSUMED], size * tokens, pairs, size * tiles, size * supervised,
                   split.checkpointed_layers, case.parallel.zero_stage)  # fmt: skip
    return each * math.ceil(case.share / size)


def explain(case: Case) -> UserError:
    """The error for a stage that does not fit even in the smallest parts, whatever the estimate said."""
    proven = replace(case, limit=min(case.limit, 0.99 * case.memory(case.smallest).total))
    layers = range(case.shape.language.blocks.layers + 1)
    return UserError(_reason(proven, layers), "; or ".join(_advice(proven, layers)) or "take a smaller model")


def _reason(case: Case, allowed: Sequence[int]) -> str:
    tokens, tiles, _ = case.longest
    needed = case.memory(Split(1, allowed[-1])).total / GIB
    return (
        f"one record of {tokens} tokens ({tiles} tile{'s' * (tiles != 1)}) does not fit: {needed:.1f} GiB with "
        f"{allowed[-1]} layers recomputed, {case.limit / GIB:.1f} GiB are planned with"
    )


def _advice(case: Case, allowed: Sequence[int]) -> Iterator[str]:
    """Changes each of which alone makes one record fit, with the memory that it then takes."""
    if allowed[-1] < case.shape.language.blocks.layers and case.fits(case.smallest):
        yield _advised("`gradient_checkpointing: auto`", case)
        return
    for what, changed in [*_other_methods(case), *_shorter_records(case)]:
        if changed.fits(changed.smallest):
            yield _advised(what, changed)
    needed = case.memory(case.smallest).total / USABLE
    large = [card.name for card in CARDS.values() if card.memory >= needed]
    if large:
        yield f"a GPU of {math.ceil(needed / GIB)} GiB or more ({', '.join(large)})"


def _advised(what: str, case: Case) -> str:
    return f"{what} ({case.memory(case.smallest).total / GIB:.1f} GiB)"


def _other_methods(case: Case) -> Iterator[tuple[str, Case]]:
    training, parallel = case.training, case.parallel
    lora = replace(training, language=False, vision=False, rank=training.rank or 16)
    if training.language:
        yield "`method: lora`", replace(case, training=lora)
    if not training.quantised and (training.language or training.rank):
        stage = min(parallel.zero_stage, 2)  # ZeRO-3 cannot spread 4-bit weights
        yield (
            "`method: qlora`",
            replace(case, training=replace(lora, quantised=True), parallel=replace(parallel, zero_stage=stage)),
        )
    for gpus in (2**power for power in range(1, 7) if not training.quantised):
        shared = replace(case, parallel=replace(parallel, gpus=max(gpus, parallel.gpus), zero_stage=3))
        if shared.parallel != parallel and shared.fits(shared.smallest):
            yield f"`deepspeed: zero3` on {shared.parallel.gpus} GPUs", shared
            break
    if parallel.zero_stage and not parallel.offload:
        stage = max(parallel.zero_stage, 2)
        offloaded = replace(parallel, zero_stage=stage, offload=True)
        yield f"`deepspeed: zero{stage}_offload`", replace(case, parallel=offloaded)


def _shorter_records(case: Case) -> Iterator[tuple[str, Case]]:
    """The most tiles and the longest `max_length` that fit, if any are fewer and shorter."""
    (tokens, tiles, supervised), each = case.longest, case.shape.tile_tokens
    for limit in range(tiles - 2, 0, -1) if case.shape.cuts_tiles else ():
        left = limit + 1 if limit > 1 else 1  # with the thumbnail
        fewer = replace(case, longest=(tokens - (tiles - left) * each, left, supervised))
        if fewer.fits(fewer.smallest):
            yield f"`max_tiles: {limit}`", fewer
            break
    for length in range((tokens - 1) // 64 * 64, 64, -64):
        left = min(tiles, (length - 1) // each) if case.shape.cuts_tiles else tiles
        if tiles and length <= max(left, 1) * each:
            return  # no room for a question beside the picture
        shorter = replace(case, longest=(length, left, min(supervised, length)))
        if shorter.fits(shorter.smallest):
            yield f"`max_length: {length}`", shorter
            return
