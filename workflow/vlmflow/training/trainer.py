"""The Hugging Face Trainer with our loss, our micro-batches and checkpoints of what is trained."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LRScheduler
from torch.profiler import record_function
from transformers import TrainerCallback

from vlmflow.cost.estimate import step_flops
from vlmflow.errors import UserError
from vlmflow.training.batches import Loader, Step
from vlmflow.training.checkpoints import AtomicSaves
from vlmflow.training.fused import Group
from vlmflow.training.meter import Meter
from vlmflow.training.room import Ahead, Fit, free_memory
from vlmflow.training.samples import Batch

_TRAINED = "trained.safetensors"


class VlmTrainer(AtomicSaves):
    """The Trainer with our loss and micro-batches, and with checkpoints that hold the trained parameters only.

    A batch of the Trainer is a whole optimizer step (:class:`Step`), which :meth:`training_step` splits by itself.
    """

    optimizer: Any
    lr_scheduler: Any

    def __init__(
        self,
        *,
        loader: Loader,
        fit: Fit,
        meter: Meter,
        cached: bool,
        ahead: Ahead,
        groups: list[Group],
        optimizer: Callable[[], torch.optim.Optimizer],
        scheduler: Callable[[torch.optim.Optimizer], LRScheduler],
        **named: Any,
    ) -> None:
        super().__init__(**named)
        self._make_optimizer, self._make_scheduler = optimizer, scheduler
        self._loader, self._fit, self._meter, self._cached = loader, fit, meter, cached
        self._ahead, self._groups = ahead, groups

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Ours. The Trainer forgets one that it was given when DeepSpeed is there, and takes its own."""
        del model
        self.optimizer = self.optimizer or self._make_optimizer()
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        """Ours, over what accelerate has made of the optimizer."""
        del num_training_steps
        self.lr_scheduler = self.lr_scheduler or self._make_scheduler(optimizer or self.optimizer)
        return self.lr_scheduler

    def get_train_dataloader(self) -> Any:
        """Optimizer steps of this process; nothing is left for accelerate to share out."""
        return self._loader

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Step], None]:
        """The next optimizer step; the Trainer counts nothing in it."""
        del num_batches, device
        step = next(epoch_iterator, None)
        return ([] if step is None else [step]), None

    def floating_point_ops(self, inputs: Any) -> int:
        """Counted by :class:`Meter` instead."""
        del inputs
        return 0

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Gradients of one optimizer step: of the mean over the supervised tokens of the *global* batch, whatever way
        it is split. Micro-batches that do not fit into memory are made smaller, and the step begins again.
        """
        del num_items_in_batch
        model.train()
        supervised = self._loader.supervised(inputs.number)
        while True:
            try:
                return self._accumulate(model, inputs.number, supervised)
            except torch.OutOfMemoryError:
                self._fit.shrink()
                if self.args.world_size > 1 or self.is_deepspeed_enabled:  # the others wait in the middle of a step
                    raise UserError("out of GPU memory", "start it again: it goes on with smaller parts") from None
            model.zero_grad(set_to_none=True)
            free_memory(self._groups)
            self._loader.start(inputs.number, self._fit.room)
            seed_step(self.args, inputs.number)

    def _accumulate(self, model: Any, step: int, supervised: int) -> torch.Tensor:
        total = torch.zeros((), device=self.args.device)
        scale = self.args.world_size / supervised  # data parallelism averages gradients; the loss is a sum
        batches = self._loader.take(step)
        done: list[tuple[int, int, int, int, float]] = []
        while True:
            with record_function("data"), self._meter.waiting():
                last, batch = next(batches)
            done.append(self._work(batch))
            with self._synchronised(model, last):
                loss = model(**self._ahead(batch)) * scale
                with record_function("backward"):
                    self.accelerator.backward(loss)
            total += loss.detach()
            if last:
                break
        for work in done:  # that of an attempt which ran out of memory does not count
            self._meter.add(*work)
        return total

    def _synchronised(self, model: Any, last: bool) -> contextlib.AbstractContextManager[None]:
        """Gradients go to the other processes with the last micro-batch."""
        self.accelerator.gradient_state._set_sync_gradients(last)
        alone = isinstance(model, DistributedDataParallel) and not last
        return model.no_sync() if alone else contextlib.nullcontext()

    def _work(self, batch: Batch) -> tuple[int, int, int, int, float]:
        """Samples, tokens, supervised tokens, tiles and operations of a micro-batch."""
        lengths = batch["cu_seqlens"].diff().double()
        pictures = batch.get("pixel_values", batch.get("features"))
        tokens, tiles, learnt = int(lengths.sum()), 0 if pictures is None else len(pictures), len(batch["targets"])
        pairs = float((lengths * (lengths + 1) / 2).sum())
        case = self._fit.case
        flops = step_flops(case.shape, case.training, tokens, pairs, tiles, learnt, cached=self._cached)
        return len(lengths), tokens, learnt, tiles, flops

    def _maybe_log_save_evaluate(self, tr_loss: torch.Tensor, grad_norm: Any, *rest: Any, **named: Any) -> None:
        """Before anything is logged or saved: a loss or gradient that is no number ends the run."""
        if not (self.control.should_log or self.control.should_save):
            return  # looking would let the device wait for this process
        norm = 0.0 if grad_norm is None or self.accelerator.scaler is not None else float(grad_norm)
        if not (math.isfinite(float(tr_loss)) and math.isfinite(norm)):
            last = self.checkpoints.last()
            raise UserError(
                f"the loss is {float(tr_loss):.3g} and the gradient's norm {norm:.3g} at step {self.state.global_step}",
                "lower learning_rate, or take precision bf16 in place of fp16; "
                + (f"the state before is in {last}" if last else "no state had been saved"),
            )
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *rest, **named)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        directory = Path(output_dir or str(self.args.output_dir))
        directory.mkdir(parents=True, exist_ok=True)
        save_file(trained_parameters(self.model, state_dict), directory / _TRAINED)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        state = load_file(Path(resume_from_checkpoint) / _TRAINED)
        unexpected = (model or self.model).load_state_dict(state, strict=False).unexpected_keys
        if unexpected:
            raise UserError(f"the checkpoint is of another model: {unexpected[:3]}", file=resume_from_checkpoint)


class StepSeed(TrainerCallback):
    """Dropout depends on (seed, step, process) alone, so that a resumed run draws what the undisturbed one did."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by the Trainer before every optimizer step."""
        del control
        seed_step(args, state.global_step)


def seed_step(args: Any, step: int) -> None:
    """Seed the random numbers of an optimizer step in this process."""
    torch.manual_seed((args.seed * 1_000_003 + step) * 1_009 + args.process_index)


def trained_parameters(model: torch.nn.Module, state: dict[str, Any] | None = None) -> dict[str, torch.Tensor]:
    """Name -> value of every parameter that is trained, on the CPU; ``state`` overrides (gathered by DeepSpeed)."""
    state = state or dict(model.named_parameters())
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return {name: state[name].detach().cpu().contiguous() for name in names}
