"""What a training stage will need, before it runs: the split of its batches, GPU memory, time and GPU-hours.

Uses the model's config.json and the counted tokens; loads no weights and needs no GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlmflow.cost.estimate import GIB, memory
from vlmflow.cost.shape import Shape
from vlmflow.cost.speed import ASSUMED, Card, card_named, cpu, seconds
from vlmflow.cost.split import ON_CPU, USABLE, Longest, choose
from vlmflow.cost.workload import Parallel, Split, Training
from vlmflow.errors import UserError
from vlmflow.files import read_json, read_manifest, write_json
from vlmflow.tokens.columns import ROW
from vlmflow.training.options import Execution, FinetuneOptions, PretrainOptions
from vlmflow.training.packing import pack_step
from vlmflow.training.samples import groups, shared_weights
from vlmflow.training.schedule import Schedule

_DEEPSPEED = Path(__file__).resolve().parents[3] / "config" / "deepspeed"
_STEPS = 50
"""Steps that are packed to see how long one takes; the others are like them."""
_LIBRARIES = 1.0 * GIB
"""Main memory that torch and the others take."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A ``pretrain`` or ``finetune`` node, as vlmflow.plan.gpu hands it over."""

    stage: str
    name: str
    options: dict[str, Any]
    execution: dict[str, Any]
    resources: dict[str, Any]


@dataclass(frozen=True)
class _Machine:
    card: Card
    gpus: int
    """0 for a CPU."""
    limit: float
    """Bytes that are planned with."""
    parallel: Parallel

    @classmethod
    def of(cls, resources: dict[str, Any], execution: Execution) -> _Machine:
        gpus = resources["gpu"]
        if not gpus:
            memory_bytes = resources["mem_mb"] * 1e6
            card = cpu(resources["cpus"], memory_bytes)
            return cls(card, 0, USABLE * memory_bytes - _LIBRARIES, Parallel())
        card, given = card_named(resources["gpu_model"]), execution.gpu_memory_gb
        deepspeed = read_json(_DEEPSPEED / f"{execution.deepspeed}.json") if execution.deepspeed else None
        limit = min(card.memory, given * 1e9) if given else card.memory
        return cls(card, gpus, USABLE * limit, Parallel.of(gpus, deepspeed))


def plan_training(stage: Stage, model: Path, tokens: Path, output: Path) -> None:
    """Write what a stage will need as JSON to ``output``; ``model`` and ``tokens`` are manifests."""
    options = (PretrainOptions if stage.stage == "pretrain" else FinetuneOptions)(**stage.options)
    shape = Shape.of(read_json(model.parent / "config.json"))
    work = _Work(tokens, options)
    write_json(output, forecast(stage, options, shape, work))


class _Work:
    """The samples of a stage by their counted lengths, in the order of training."""

    def __init__(self, tokens: Path, options: PretrainOptions | FinetuneOptions) -> None:
        indices = range(len(read_manifest(tokens)["datasets"]))
        rows = [np.load(tokens.parent / f"{index}.npy") for index in indices]
        members = [
            group
            for index, part, times in zip(indices, rows, options.repeat, strict=True)
            for group in groups(index, part["repeat"], times)
        ]
        weights = options.weights and shared_weights(members, options.weights)
        sizes, repeats = [group.size for group in members], [group.repeat for group in members]
        self._schedule = Schedule(sizes, repeats, options.epochs, options.batch_size, options.seed, weights)
        self._groups = [rows[group.dataset][group.start : group.start + group.size] for group in members]
        self._batch = options.batch_size
        self.steps = self._schedule.steps

    @property
    def longest(self) -> Longest:
        """The most tokens, tiles and supervised tokens of any record."""
        tokens, tiles, supervised = (
            max(int(rows[column].max(initial=0)) for rows in self._groups)
            for column in ("tokens", "tiles", "supervised")
        )
        return tokens, tiles, supervised

    def some_steps(self) -> Iterator[np.ndarray]:
        """The rows of the samples of :data:`_STEPS` steps that are spread over the run, or of all."""
        for step in np.unique(np.linspace(0, self.steps - 1, _STEPS).astype(int)).tolist():
            places = [self._schedule[step * self._batch + index] for index in range(self._batch)]
            yield np.array([self._groups[group][record] for group, record in places], ROW)


def forecast(stage: Stage, options: PretrainOptions | FinetuneOptions, shape: Shape, work: _Work) -> dict[str, Any]:
    """Table row of a stage; ``fits`` false, with the reason and what would, where the memory is too small."""
    execution = Execution(**stage.execution)
    machine = _Machine.of(stage.resources, execution)
    job = _Job(shape, _training(options, execution, machine), work.longest, options.batch_size, machine)
    steps = list(work.some_steps())
    problem = None
    try:
        split = job.split(execution)
        time = work.steps * float(np.mean([job.step_seconds(split, rows) for rows in steps]))
    except UserError as error:
        problem, split, time = error.problem, Split(1, shape.language.blocks.layers), None
    why_not = [f"{problem.reason}; what would fit: {problem.advice}"] if problem else []
    return {
        "stage": stage.stage,
        "name": stage.name,
        "gpu": machine.card.name,
        "gpu_assumed": _is_assumed(stage),
        "gpus": machine.gpus,
        "samples": work.steps * options.batch_size,
        "tokens": round(work.steps * float(np.mean([rows["tokens"].sum() for rows in steps]))),
        "steps": work.steps,
        "longest_tokens": work.longest[0],
        "most_tiles": work.longest[1],
        **asdict(split),
        "layers": shape.language.blocks.layers,
        "memory_gib": job.memory(split),
        "memory_limit_gib": round(machine.limit / GIB, 2),
        "seconds": time and round(time, 1),
        "gpu_hours": time and round(time * machine.gpus / 3600, 3),
        "fits": problem is None,
        "notes": [*why_not, *_notes(stage, execution, split, time)],
    }


@dataclass(frozen=True)
class _Job:
    shape: Shape
    training: Training
    longest: Longest
    batch_size: int
    machine: _Machine

    @property
    def processes(self) -> int:
        return max(self.machine.gpus, 1)

    @property
    def share(self) -> int:
        """Samples of a step for one process."""
        return -(-self.batch_size // self.processes)

    def split(self, execution: Execution) -> Split:
        """As training chooses it."""
        wanted = execution.micro_batch_size
        return choose(
            self.shape,
            self.training,
            self.longest,
            self.machine.limit,
            self.share,
            micro_batch_size=ON_CPU if wanted is None and not self.machine.gpus else wanted,
            checkpointing=execution.gradient_checkpointing,
            parallel=self.machine.parallel,
        )

    def memory(self, split: Split) -> dict[str, float]:
        """GiB of one process, by part and in total."""
        accumulating = split.micro_batch_size < self.share
        needed = memory(self.shape, self.training, split, *self.longest, self.machine.parallel, accumulating)
        return {name: round(value / GIB, 2) for name, value in {**asdict(needed), "total": needed.total}.items()}

    def step_seconds(self, split: Split, rows: np.ndarray) -> float:
        """Of the slowest process, with the samples ``rows`` packed as training packs them."""
        tokens, tiles, _ = (split.micro_batch_size * most for most in self.longest)
        tiles = max(tiles, split.micro_batch_size) if self.training.vision_learns else tokens  # as batches.Room has it
        packed = pack_step(rows["tokens"], rows["tiles"], self.processes, tokens, tiles)
        return max(sum(self._seconds(split, rows[batch]) for batch in process) for process in packed)

    def _seconds(self, split: Split, rows: np.ndarray) -> float:
        """Of a micro-batch."""
        lengths = rows["tokens"].astype(float)
        return seconds(
            self.shape,
            self.training,
            self.machine.card,
            int(lengths.sum()),
            float((lengths * (lengths + 1) / 2).sum()),
            int(rows["tiles"].sum()),
            int(rows["supervised"].sum()),
            split.checkpointed_layers,
            self.machine.parallel.zero_stage,
        )


def _training(options: PretrainOptions | FinetuneOptions, execution: Execution, machine: _Machine) -> Training:
    full_numbers = options.precision == "fp32" or (options.precision == "auto" and not machine.gpus)
    compiled = machine.gpus > 0 if execution.compile is None else execution.compile
    return Training.of(options, number_bytes=4 if full_numbers else 2, compiled=compiled)


def _is_assumed(stage: Stage) -> bool:
    return bool(stage.resources["gpu"] and stage.resources["gpu_model"] is None)


def _notes(stage: Stage, execution: Execution, split: Split, time: float | None) -> Iterator[str]:
    """What a reader of the table should know besides."""
    if _is_assumed(stage):
        yield f"{ASSUMED} is assumed; `resources: {{gpu_model: ...}}` names the card"
    wanted = execution.micro_batch_size
    if wanted is not None and split.micro_batch_size < wanted:
        yield f"micro_batch_size {wanted} is more than fits, or than the samples of a step for one process"
    limit = stage.resources["runtime"]
    if time is not None and time > 60 * limit:
        yield f"longer than its time limit of {limit} min (`runtime`): it will be stopped and has to be started again"
