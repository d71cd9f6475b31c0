"""One training run: data order, loss, optimizer, checkpoints and metrics around the Hugging Face Trainer."""

from __future__ import annotations

import functools
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainerCallback, TrainingArguments

from vlmflow.errors import UserError
from vlmflow.files import sha256_json
from vlmflow.training.metrics import MetricsLog
from vlmflow.training.objective import Objective
from vlmflow.training.optimizer import make_optimizer, make_scheduler
from vlmflow.training.options import Execution, TrainingOptions
from vlmflow.training.precision import compute_dtype
from vlmflow.training.samples import Batch, Samples, collate

_TRAINED = "trained.safetensors"
_DEEPSPEED = Path(__file__).resolve().parents[3] / "config" / "deepspeed"


class VlmTrainer(Trainer):
    """The Trainer with our loss and with checkpoints that hold the trained parameters only."""

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Mean over the supervised tokens of the *global* batch, whatever way it is split."""
        del return_outputs  # no evaluation loop runs here
        loss: torch.Tensor = model(**inputs) / num_items_in_batch
        return loss * self.accelerator.num_processes  # data parallelism averages gradients; the loss is a sum

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
        """Called by the Trainer before the first micro-batch of every optimizer step."""
        del control
        torch.manual_seed((args.seed * 1_000_003 + state.global_step) * 1_009 + args.process_index)


def trained_parameters(model: torch.nn.Module, state: dict[str, Any] | None = None) -> dict[str, torch.Tensor]:
    """Name -> value of every parameter that is trained, on the CPU; ``state`` overrides (gathered by DeepSpeed)."""
    state = state or dict(model.named_parameters())
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return {name: state[name].detach().cpu().contiguous() for name in names}


def load_samples(tokens: Path, processor: Any, options: TrainingOptions) -> Samples:
    """The training records that were counted, in the order in which the optimizer sees them."""
    schedule = {"epochs": options.epochs, "batch_size": options.batch_size, "seed": options.seed}
    return Samples(tokens, processor, schedule, options.repeat, options.weights)


def fit(
    model: Any,
    processor: Any,
    samples: Samples,
    options: TrainingOptions,
    execution: Execution,
    checkpoints: Path,
    identity: dict[str, Any],
    projector_rate: float | None = None,
) -> dict[str, Any]:
    """Train the parameters of ``model`` that require gradients, in place; return facts for the provenance.

    ``identity`` names configuration and inputs: state under ``checkpoints`` is resumed only when it belongs to them.
    """
    steps = samples.schedule.steps
    folder = _state_folder(checkpoints, identity)
    arguments = _arguments(options, execution, steps, folder)
    if execution.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    objective = Objective(model)
    optimizer = make_optimizer(objective, options, projector_rate)
    resume = _last_checkpoint(folder)
    position = int(resume.name.rsplit("-", 1)[1]) * options.batch_size if resume else 0
    trainer = VlmTrainer(
        model=objective,
        args=arguments,
        train_dataset=torch.utils.data.Subset(samples, range(position, len(samples))),
        data_collator=functools.partial(collate, pad_token=processor.tokenizer.pad_token_id),
        optimizers=(optimizer, make_scheduler(optimizer, options, steps)),
        callbacks=[
            StepSeed(),
            MetricsLog(checkpoints / "metrics.jsonl", steps, options.batch_size, position // options.batch_size),
        ],
    )
    trainer.model_accepts_loss_kwargs = True  # count the supervised tokens of the global batch for us
    trainer.remove_callback(transformers.PrinterCallback)
    result = trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    return {
        "steps": steps,
        "samples": len(samples),
        "epoch_size": samples.schedule.epoch_size,
        "trained_parameters": sum(p.numel() for p in objective.parameters() if p.requires_grad),
        "mean_loss": result.training_loss,
        "resumed_at_step": position // options.batch_size,
    }


def _arguments(options: TrainingOptions, execution: Execution, steps: int, folder: Path) -> TrainingArguments:
    on_gpu = torch.cuda.is_available()
    dtype = compute_dtype(options.precision)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    share, rest = divmod(options.batch_size, processes)
    if rest:
        raise UserError(f"batch_size {options.batch_size} cannot be shared by {processes} processes")
    micro = next(size for size in range(min(execution.micro_batch_size, share), 0, -1) if share % size == 0)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=share // micro,
        max_grad_norm=options.max_grad_norm,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        use_cpu=not on_gpu,
        seed=options.seed,
        data_seed=options.seed,
        train_sampling_strategy="sequential",
        ignore_data_skip=True,
        remove_unused_columns=False,
        label_names=["labels"],
        average_tokens_across_devices=True,
        ddp_find_unused_parameters=False,
        dataloader_num_workers=execution.workers,
        dataloader_pin_memory=on_gpu,
        save_steps=execution.checkpoint_steps,
        save_total_limit=2,
        logging_steps=max(1, steps // 200),
        report_to=[],
        disable_tqdm=True,
        deepspeed=str(_DEEPSPEED / f"{execution.deepspeed}.json") if execution.deepspeed else None,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs are torchrun's business, never DataParallel's
    return arguments


def _state_folder(checkpoints: Path, identity: dict[str, Any]) -> Path:
    """Where the state of exactly this run is kept; state of other configurations of the node is deleted."""
    folder = checkpoints / sha256_json(identity)[:16]
    for other in checkpoints.glob("*"):
        if other.is_dir() and other != folder:
            shutil.rmtree(other)
    return folder


def _last_checkpoint(folder: Path) -> Path | None:
    """The latest whole checkpoint; the Trainer writes ``trainer_state.json`` last."""
    whole = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]
    return max(whole, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)
