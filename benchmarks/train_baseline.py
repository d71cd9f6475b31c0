"""The baseline: what the documentation of transformers' Trainer, peft and bitsandbytes shows.

    python benchmarks/train_baseline.py --model MODEL/manifest.json --tokens TOKENS/manifest.json --output RESULT.json

``nf4``       from_pretrained in 4 bits (nf4, double quantisation), prepare_model_for_kbit_training, get_peft_model
              (r 128, alpha 256, dropout 0.05 on the language model's linear layers, projector trained as a whole)
``lora``      the same over bfloat16 weights
``projector`` everything frozen but the projector (LLaVA stage 1)
all with Trainer(bf16=True), a collator that pads, and the loss of the model's own forward pass. JPEGs are decoded,
cut and tokenised in dataloader workers, by the functions that the project uses. Tower and projector stay out of the
4 bits, as in the project. Steady state: the median time of an optimizer step after the first three.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from PIL import Image as Pictures
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import (
    AutoModelForImageTextToText,
    BitsAndBytesConfig,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "workflow"))

from vlmflow.data.records import RecordFile  # noqa: E402
from vlmflow.models.directory import load_processor  # noqa: E402
from vlmflow.models.pictures import picture_lengths, pixel_values  # noqa: E402
from vlmflow.models.template import IGNORED, encode  # noqa: E402

VARIANTS = ("nf4", "lora", "projector")
WARM_UP = 3
GIB = 2**30
_LINEARS = r".*language_model\.layers\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
_FROZEN = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]

Sample = dict[str, torch.Tensor]


class Records(Dataset[Sample]):
    """Conversations with their pictures, tokenised and tiled when asked for."""

    def __init__(self, tokens: Path, processor: Any) -> None:
        self._records, self._processor = RecordFile(tokens.parent / "0.jsonl"), processor

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Sample:
        record = self._records[index]
        sizes = [(image.width, image.height) for image in record.images]
        encoded = encode(self._processor.tokenizer, record.turns, picture_lengths(self._processor, sizes))
        sample = {"input_ids": torch.tensor(encoded.input_ids), "labels": torch.tensor(encoded.labels)}
        if record.images:
            pictures = [Pictures.open(image.path).convert("RGB") for image in record.images]
            sample["pixel_values"] = pixel_values(self._processor, pictures)
        return sample


class Padded:
    """Pads a batch on the right."""

    def __init__(self, pad_token: int) -> None:
        self._pad_token = pad_token

    def __call__(self, samples: list[Sample]) -> Sample:
        ids, labels = ([sample[name] for sample in samples] for name in ("input_ids", "labels"))
        batch = {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self._pad_token),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
            "attention_mask": pad_sequence([torch.ones_like(each) for each in ids], batch_first=True),
        }
        pictures = [sample["pixel_values"] for sample in samples if "pixel_values" in sample]
        return {**batch, "pixel_values": torch.cat(pictures)} if pictures else batch


class StepTimes(TrainerCallback):
    """Seconds of each optimizer step, the GPU's work done."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The first step includes the start of the workers; it is one of the warm-ups."""
        del args, state, control
        self._last = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by the Trainer after every optimizer step."""
        del args, state, control
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._last = now


def load(model: Path, variant: str) -> Any:
    """The model with what is to be trained, as the documentation has it."""
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    place = {"": 0} if torch.cuda.is_available() else {"": "cpu"}
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=_FROZEN,
    )  # fmt: skip
    options = {"quantization_config": quantization} if variant == "nf4" else {}
    network = AutoModelForImageTextToText.from_pretrained(model.parent, dtype=dtype, device_map=place, **options)
    if variant == "projector":
        network.requires_grad_(False)
        network.model.multi_modal_projector.float().requires_grad_(True)
        return network
    if variant == "nf4":
        network = prepare_model_for_kbit_training(network)
    lora = LoraConfig(
        r=128, lora_alpha=256, lora_dropout=0.05, target_modules=_LINEARS, modules_to_save=["multi_modal_projector"]
    )
    return get_peft_model(network, lora)


def train(options: argparse.Namespace) -> dict[str, Any]:
    """Train some steps; returns rate and peak memory."""
    on_gpu = torch.cuda.is_available()
    if options.memory_gib and on_gpu:
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(options.memory_gib * GIB / whole)
    set_seed(0)
    processor = load_processor(options.model)
    network = load(options.model, options.variant)
    times = StepTimes()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=options.steps,
            per_device_train_batch_size=options.batch,
            gradient_accumulation_steps=options.accumulation,
            gradient_checkpointing=options.checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False} if options.checkpointing else None,
            bf16=on_gpu,
            use_cpu=not on_gpu,
            learning_rate=2e-4,
            warmup_steps=1,
            lr_scheduler_type="cosine",
            dataloader_num_workers=options.workers,
            remove_unused_columns=False,
            save_strategy="no",
            logging_steps=1,
            report_to=[],
            disable_tqdm=True,
        )
        trainer = Trainer(
            model=network,
            args=arguments,
            train_dataset=Records(options.tokens, processor),
            data_collator=Padded(processor.tokenizer.pad_token_id),
            callbacks=[times],
        )
        if options.profile:
            import train_profile

            train_profile.name_ranges(network, trainer)
            trainer.add_callback(train_profile.Profile(options.profile))
        trainer.train()
    steady = times.seconds[WARM_UP:]
    samples = options.batch * options.accumulation
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return {
        "samples_per_s": samples / statistics.median(steady),
        "mean_samples_per_s": samples / statistics.mean(steady),
        "step_seconds": times.seconds,
        "losses": losses,
        "peak_gib": torch.cuda.max_memory_allocated() / GIB if on_gpu else None,
        "reserved_gib": torch.cuda.max_memory_reserved() / GIB if on_gpu else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--variant", choices=VARIANTS, default="nf4")
    parser.add_argument("--checkpointing", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--batch", type=int, default=4, help="samples of a forward pass")
    parser.add_argument("--accumulation", type=int, default=8, help="forward passes of an optimizer step")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--memory-gib", type=float, help="cap on GPU memory")
    parser.add_argument("--profile", type=Path, help="write where the time goes to this JSON file")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    result = train(options)
    options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
