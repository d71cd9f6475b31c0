"""Training state that is whole or absent: when it is saved, and how.

A checkpoint is written into a hidden folder, flushed to the disk and then renamed, so that a process which is killed, a
full disk or a power cut leaves the checkpoint before it as it was.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import Trainer, TrainerCallback
from transformers.integrations.deepspeed import deepspeed_load_checkpoint

from vlmflow.errors import Interrupted, UserError
from vlmflow.files import read_json, write_json
from vlmflow.training.state import Checkpoints, flush, remove

_LAYOUT = "layout.json"


class AtomicSaves(Trainer):
    """A Trainer whose checkpoints are whole or absent; all processes succeed or fail together."""

    def __init__(self, *args: Any, checkpoints: Checkpoints, **named: Any) -> None:
        super().__init__(*args, **named)
        self.checkpoints = checkpoints
        self._writing: Path | None = None

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **named: Any) -> Any:
        """As the Trainer's, but refuses state that it would read half (it takes a missing optimizer for a new one)."""
        if resume_from_checkpoint:
            saved, ours = read_json(Path(resume_from_checkpoint) / _LAYOUT), self._layout()
            if saved != ours:
                raise UserError(
                    f"the state was saved {_words(saved)} and cannot be continued {_words(ours)}",
                    "use the same `resources`, or delete this folder to start anew",
                    file=resume_from_checkpoint,
                )
        return super().train(resume_from_checkpoint, *args, **named)

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        """With DeepSpeed, leave frozen weights out of the state; the Trainer does so for a bare peft model only."""
        if not self.is_deepspeed_enabled:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        engine = self.model_wrapped
        engine.save_checkpoint = functools.partial(engine.save_checkpoint, exclude_frozen_parameters=True)
        if resume_from_checkpoint:
            deepspeed_load_checkpoint(engine, resume_from_checkpoint, load_module_strict=False)
            self._load_optimizer_and_scheduler(resume_from_checkpoint)
        return prepared

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the Trainer's; into a checkpoint one process writes, and none with DeepSpeed: its shards are the state."""
        if not _internal_call or (self.args.should_save and not self.is_deepspeed_enabled):
            super().save_model(output_dir, _internal_call)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._writing or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        step = self.state.global_step
        for phase in (functools.partial(self._write, model, trial), self._flush, self._publish):
            failure: UserError | None = None
            try:
                phase(step)
            except (OSError, RuntimeError, SafetensorError) as error:
                reason = _writing_error(error)
                if reason is None:
                    raise
                failure = self.checkpoints.failure(step, reason)
                if self.is_deepspeed_enabled:  # the others wait inside DeepSpeed, not below
                    self._give_up(step)
                    raise failure from error
            if largest(failure is not None, self.args.device):
                self._give_up(step)
                raise failure or self.checkpoints.failure(step, "another process could not write")

    def _write(self, model: torch.nn.Module, trial: Any, step: int) -> None:
        part = self._writing = self.checkpoints.part(step)
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._writing = None
        if self.is_world_process_zero():
            write_json(part / f"checkpoint-{step}" / _LAYOUT, self._layout())

    def _flush(self, step: int) -> None:
        if self.is_local_process_zero():
            flush(self.checkpoints.part(step))

    def _publish(self, step: int) -> None:
        if self.is_world_process_zero():
            self.checkpoints.publish(step)

    def _give_up(self, step: int) -> None:
        if self.is_world_process_zero():
            remove(self.checkpoints.part(step))

    def _layout(self) -> dict[str, int] | None:
        """DeepSpeed's shards fit one stage and number of processes only; everything else fits everything."""
        if not self.is_deepspeed_enabled:
            return None
        return {"stage": self.accelerator.state.deepspeed_plugin.zero_stage, "processes": self.args.world_size}


class SaveSchedule(TrainerCallback):
    """Saves every ``steps`` steps, every ``minutes`` minutes, at the end, and when ``asked`` to stop.

    All processes decide alike. After a save because of ``asked``, :class:`Interrupted` ends the training; asked during
    the last step, it just completes. The Trainer's own ``save_strategy`` is to be ``no``.
    """

    def __init__(
        self,
        asked: Callable[[], bool],
        minutes: float,
        steps: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._asked, self._seconds, self._steps, self._clock = asked, minutes * 60, steps, clock
        self._saved = clock()
        self._stop = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Loading and compiling do not count."""
        del args, state, control
        self._saved = self._clock()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Decide whether this step is saved, and whether it is the last."""
        wish = largest(2 if self._asked() else self._clock() - self._saved >= self._seconds, args.device)
        last = state.global_step >= state.max_steps
        self._stop = wish == 2 and not last
        control.should_training_stop |= self._stop
        control.should_save |= bool(wish) or last or bool(self._steps and state.global_step % self._steps == 0)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The state is on the disk."""
        del args, control
        self._saved = self._clock()
        if self._stop:
            raise Interrupted(state.global_step)


def largest(value: int, device: torch.device) -> int:
    """The largest ``value`` of all processes of the run."""
    if not torch.distributed.is_initialized():
        return int(value)
    shared = torch.tensor(int(value), device=device)
    torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
    return int(shared)


def _writing_error(error: Exception) -> str | None:
    """What went wrong while writing; None if it was something else. ``torch.save`` does not keep the system's error."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    told = isinstance(error, SafetensorError) or re.search("inline_container|PytorchStreamWriter", str(error))
    return f"writing failed, {error}" if told else None


def _words(layout: dict[str, int] | None) -> str:
    return f"with ZeRO-{layout['stage']} on {layout['processes']} processes" if layout else "without DeepSpeed"
