"""One training run: data order, loss, optimizer, checkpoints and metrics around the Hugging Face Trainer."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers import TrainingArguments

from vlmflow.cost.workload import Parallel, Training
from vlmflow.errors import UserError
from vlmflow.files import read_json
from vlmflow.training.batches import Loader, Share
from vlmflow.training.checkpoints import SaveSchedule
from vlmflow.training.features import FeatureCache
from vlmflow.training.meter import Meter, device_peak
from vlmflow.training.metrics import METRICS, MetricsLog
from vlmflow.training.objective import Objective
from vlmflow.training.optimizer import make_optimizer, make_scheduler
from vlmflow.training.options import Execution, FinetuneOptions, PretrainOptions, TrainingOptions
from vlmflow.training.precision import compute_dtype
from vlmflow.training.prepare import prepare
from vlmflow.training.room import Ahead, choose_fit, probe
from vlmflow.training.samples import Samples
from vlmflow.training.state import Checkpoints
from vlmflow.training.trainer import StepSeed, VlmTrainer

_DEEPSPEED = Path(__file__).resolve().parents[3] / "config" / "deepspeed"
_ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
_LOGGED = 200  # lines of metrics.jsonl in a long run


class Places(NamedTuple):
    """Folders of a stage that are not its output."""

    checkpoints: Path
    features: Path | None
    """Cache of vision features; None for none."""


class Trained(NamedTuple):
    """What :func:`fit` leaves behind besides the model."""

    facts: dict[str, Any]
    """For the provenance."""
    state: Path
    """Folder of the training state; the metrics are there."""


def load_samples(tokens: Path, processor: Any, options: TrainingOptions) -> Samples:
    """The training records that were counted, in the order in which the optimizer sees them."""
    schedule = {"epochs": options.epochs, "batch_size": options.batch_size, "seed": options.seed}
    return Samples(tokens, processor, schedule, options.repeat, options.weights)


def start(options: TrainingOptions, execution: Execution) -> TrainingArguments:
    """The Trainer's settings. Joins the processes of a run, and with ZeRO-3 has weights spread over them when they are
    read, so it comes before the model is loaded.
    """
    on_gpu = torch.cuda.is_available()
    dtype = compute_dtype(options.precision)
    if execution.deepspeed:  # wants a group of processes, be it of one that torchrun has not started
        for name, value in _ALONE.items():
            os.environ.setdefault(name, value)
    arguments = TrainingArguments(
        output_dir="unused",
        per_device_train_batch_size=1,
        max_grad_norm=options.max_grad_norm,
        fp16=dtype == torch.float16,
        bf16=dtype == torch.bfloat16 and execution.deepspeed is not None,  # Objective does it by itself otherwise
        use_cpu=not on_gpu,
        seed=options.seed,
        data_seed=options.seed,
        ignore_data_skip=True,
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
        save_strategy="no",
        logging_nan_inf_filter=False,
        report_to=[],
        disable_tqdm=True,
        deepspeed=str(_deepspeed_file(execution)) if execution.deepspeed else None,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs are torchrun's business, never DataParallel's
    if execution.deepspeed:
        from deepspeed import comm

        if not comm.is_initialized():  # accelerate sees to it on GPUs only
            comm.init_distributed(dist_backend="nccl" if on_gpu else "gloo", auto_mpi_discovery=False)
    return arguments


def fit(
    model: Any,
    processor: Any,
    samples: Samples,
    options: PretrainOptions | FinetuneOptions,
    execution: Execution,
    arguments: TrainingArguments,
    places: Places,
    identity: dict[str, Any],
    tower: str,
    asked: Callable[[], bool],
    projector_rate: float | None = None,
) -> Trained:
    """Train the parameters of ``model`` that require gradients, in place.

    ``arguments``: of :func:`start`. ``identity`` names configuration and inputs: state under ``places.checkpoints`` is
    resumed only when it belongs to them. ``tower``: hash of the vision tower, for the cache of its features. ``asked``
    tells whether to stop (vlmflow.training.interrupts).
    """
    dtype, on_gpu = compute_dtype(options.precision), torch.cuda.is_available()
    state = Checkpoints(places.checkpoints, identity, execution.checkpoints_kept)
    share = Share(arguments.process_index, arguments.world_size)
    parallel = Parallel.of(share.processes, read_json(_deepspeed_file(execution)) if execution.deepspeed else None)
    if options.batch_size % share.processes:
        raise UserError(
            f"batch_size {options.batch_size} cannot be shared by {share.processes} processes",
            "choose a multiple of the number of GPUs",
        )
    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    workers = _workers(execution.workers)
    compiled = on_gpu if execution.compile is None else execution.compile
    training = Training.of(options, number_bytes=dtype.itemsize, compiled=compiled)
    room = choose_fit(core, samples, training, execution, parallel, state)
    if places.features is not None and parallel.zero_stage < 3:
        samples.cache = FeatureCache.open(places.features, core, processor, samples, execution, tower)
    if samples.cache is not None:
        samples.cache.fill(core, workers)
    groups = prepare(core, dtype, fuse=parallel.zero_stage < 3, compiled=compiled)
    room.apply()
    objective = Objective(model, dtype).train()  # layers recompute their activations in training only
    ahead = Ahead(objective, arguments.device, beside=on_gpu and not execution.deepspeed)
    if on_gpu and not execution.deepspeed:
        probe(room, objective, ahead, groups, dtype)
    resume = state.last()
    first = int(resume.name.rsplit("-", 1)[1]) if resume else 0
    steps = samples.schedule.steps
    arguments.output_dir, arguments.max_steps = str(state.folder), steps
    arguments.logging_steps = max(1, steps // _LOGGED)
    loader = Loader(samples, first, share, workers, dtype)
    loader.start(first, room.room)
    meter = Meter(share.processes, device_peak())
    log = MetricsLog(state.folder / METRICS, steps, meter)
    with contextlib.closing(log):
        trainer = VlmTrainer(
            loader=loader,
            fit=room,
            meter=meter,
            cached=samples.cache is not None,
            ahead=ahead,
            groups=groups,
            checkpoints=state,
            model=objective,
            args=arguments,
            optimizer=lambda: make_optimizer(objective, options, projector_rate),
            scheduler=lambda optimizer: make_scheduler(optimizer, options, steps),
            callbacks=[
                StepSeed(), log, SaveSchedule(asked, execution.checkpoint_minutes, execution.checkpoint_steps)
            ],
        )  # fmt: skip
        trainer.remove_callback(transformers.PrinterCallback)
        with _told_when_others_end(state):
            trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    facts = {
        "steps": steps,
        "samples": len(samples),
        "epoch_size": samples.schedule.epoch_size,
        "trained_parameters": sum(p.numel() for p in objective.parameters() if p.requires_grad),
        "resumed_at_step": first,
        "processes": arguments.world_size,
        "micro_batch_size": room.split.micro_batch_size,
        "checkpointed_layers": room.split.checkpointed_layers,
        "cached_features": samples.cache is not None,
    }
    return Trained(facts, state.folder)


@contextlib.contextmanager
def _told_when_others_end(state: Checkpoints) -> Iterator[None]:
    """A process cannot go on when another one of its run has ended; what it says then is about connections."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.distributed.DistBackendError) and "gloo" not in str(error):
            raise
        last = state.last()
        raise UserError(
            "another process of this run has ended; why, its own messages say, or out of memory if there are none",
            f"run the same command again: it {f'goes on from {last}' if last else 'starts from the beginning'}",
        ) from error


def _deepspeed_file(execution: Execution) -> Path:
    return _DEEPSPEED / f"{execution.deepspeed}.json"


def _workers(asked: int | None) -> int:
    """Processes that prepare data, for each process that trains."""
    if asked is not None:
        return asked
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(0, min(8, cores - 1)) if torch.cuda.is_available() else 0
