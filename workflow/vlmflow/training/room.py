"""How much of a step goes through the device at once: chosen by the estimate, proved by a probe, less when it fails."""

from __future__ import annotations

import gc
import logging
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch

from vlmflow.cost.estimate import GIB
from vlmflow.cost.shape import Shape
from vlmflow.cost.split import ON_CPU, USABLE, Case, choose, explain
from vlmflow.cost.workload import Parallel, Split, Training, trained_parameters
from vlmflow.training.batches import Packer, Room
from vlmflow.training.checkpoints import largest
from vlmflow.training.fused import Group
from vlmflow.training.objective import Objective
from vlmflow.training.options import Execution
from vlmflow.training.prepare import recompute
from vlmflow.training.samples import Batch, Samples
from vlmflow.training.state import Checkpoints

logger = logging.getLogger(__name__)


@dataclass
class Fit:
    """The split that is in use, and what is known of its memory. Shrinks when memory runs out."""

    case: Case
    split: Split
    samples: Samples
    core: Any
    state: Checkpoints
    conditions: dict[str, Any]
    """What a remembered split was found under."""

    @property
    def room(self) -> Room:
        return Room.of(self.samples, self.split.micro_batch_size, self.case.training.vision_learns)

    def apply(self) -> None:
        """Let the layers recompute as the split says."""
        recompute(self.core, self.split.checkpointed_layers)

    def shrink(self) -> None:
        """Half the micro-batch; below one record, recompute all layers; :class:`UserError` with what would fit then.

        What comes out is remembered, so that a restart does not run into it again.
        """
        size, layers = self.split.micro_batch_size, self.case.shape.language.blocks.layers
        if size > 1:
            self.split = replace(self.split, micro_batch_size=size // 2)
        elif self.split.checkpointed_layers < layers:
            self.split = replace(self.split, checkpointed_layers=layers)
        else:
            raise explain(self.case)
        logger.info("out of GPU memory: %s", describe(self.split, layers))
        self.state.remember(**self.conditions, split=[self.split.micro_batch_size, self.split.checkpointed_layers])
        self.apply()


def choose_fit(
    core: Any, samples: Samples, training: Training, execution: Execution, parallel: Parallel, state: Checkpoints
) -> Fit:
    """The fastest split that the estimate lets fit, or the one that an earlier start of this run was forced to."""
    shape = Shape.of(core.config.to_dict())
    longest = (samples.most("tokens"), samples.most("tiles"), samples.most("supervised"))
    share = samples.schedule.batch_size // parallel.gpus
    limit = _limit(execution)
    case = Case(shape, training, longest, limit, share, parallel)
    layers = shape.language.blocks.layers
    asked = execution.gradient_checkpointing
    wished: dict[str, Any] = {"micro_batch_size": execution.micro_batch_size, "checkpointing": asked}
    conditions = {"limit": limit, "parallel": asdict(parallel), **wished}
    known = state.recall()
    if known and all(known.get(name) == value for name, value in conditions.items()):
        split = Split(*known["split"])
    elif torch.cuda.is_available():
        split = choose(shape, training, longest, limit, share, parallel=parallel, **wished)
    else:
        recomputed = 0 if asked == "auto" else layers if asked is True else int(asked)
        split = Split(min(execution.micro_batch_size or ON_CPU, share), min(recomputed, layers))
    if torch.cuda.is_available():
        _announce(case, split)
    return Fit(case, split, samples, core, state, conditions)


def _announce(case: Case, split: Split) -> None:
    needed = case.memory(split)
    sizes = {field.name: getattr(needed, field.name) / GIB for field in fields(needed)}
    parts = ", ".join(f"{name} {size:.1f}" for name, size in sizes.items() if size >= 0.05)
    layers = case.shape.language.blocks.layers
    logger.info("memory: %.1f GiB expected (%s); %s", needed.total / GIB, parts, describe(split, layers))


def describe(split: Split, layers: int) -> str:
    """For the log."""
    return (
        f"micro-batches as large as {split.micro_batch_size} of the longest records, "
        f"{split.checkpointed_layers} of {layers} layers recomputed"
    )


class Ahead:
    """Brings micro-batches to the device. Copying, and a frozen tower's work, go on beside the backward pass of the
    micro-batch before, on a CUDA stream of their own if ``beside``.
    """

    def __init__(self, objective: Objective, device: torch.device, beside: bool) -> None:
        self._objective, self._device = objective, device
        self._stream = torch.cuda.Stream() if beside else None

    def __call__(self, batch: Batch) -> Batch:
        """``batch`` on the device, with features in place of pictures if they were made already."""
        if self._stream is None:
            return self._copied(batch)
        current = torch.cuda.current_stream()
        with torch.cuda.stream(self._stream):
            ready: Batch = self._objective.look(self._copied(batch))
        current.wait_stream(self._stream)
        for value in ready.values():
            if isinstance(value, torch.Tensor):
                value.record_stream(current)
        return ready

    def _copied(self, batch: Batch) -> Batch:
        return {
            name: value.to(self._device, non_blocking=True) if isinstance(value, torch.Tensor) else value
            for name, value in batch.items()
        }


def probe(fit: Fit, objective: Objective, ahead: Ahead, groups: list[Group], dtype: torch.dtype) -> None:
    """Run the worst micro-batches, forward and backward, beside room for the optimizer; shrink until they fit.

    No gradient is kept. All processes shrink alike.
    """
    device = next(objective.parameters()).device
    trained = trained_parameters(fit.case.shape, fit.case.training)
    while largest(_fails(fit, objective, ahead, dtype, trained), device):
        free_memory(groups)
        fit.shrink()
    free_memory(groups)


def _fails(fit: Fit, objective: Objective, ahead: Ahead, dtype: torch.dtype, trained: int) -> bool:
    try:
        copies = 2 if fit.case.parallel.gpus == 1 else 3  # Adam's two moments; gradients on their way to the others
        reserved = torch.empty(trained * copies, device=next(objective.parameters()).device)
        for batch in _worst(fit, dtype):
            objective(**ahead(batch)).backward()
        del reserved
        return False
    except torch.OutOfMemoryError:
        return True
    finally:
        objective.zero_grad(set_to_none=True)


def _worst(fit: Fit, dtype: torch.dtype) -> list[Batch]:
    """Micro-batches of the records with the most tokens, tiles and supervised tokens."""
    batches = []
    for column in ("tokens", "tiles", "supervised"):
        records = fit.samples.longest(column, fit.split.micro_batch_size)
        made = [fit.samples.sample(*record) for record in records]
        batches.append(Packer(dtype)([made[place % len(made)] for place in range(fit.split.micro_batch_size)]))
    return batches


def free_memory(groups: list[Group]) -> None:
    """Give memory that nothing refers to any more back to the device; ``groups`` may hold outputs of a failed pass."""
    for group in groups:
        group.forget()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _limit(execution: Execution) -> float:
    """Bytes to plan with; ``gpu_memory_gb`` is made a hard limit."""
    if not torch.cuda.is_available():
        return 0.0  # main memory is not planned here
    whole = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    allowed = min(whole, (execution.gpu_memory_gb or float("inf")) * 1e9)
    if allowed < whole:
        torch.cuda.set_per_process_memory_fraction(allowed / whole)
    return float(USABLE * allowed)
