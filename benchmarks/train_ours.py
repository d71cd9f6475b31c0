"""The project's own training stages on benchmark data: one run, timed from its metrics.jsonl and provenance.json.

    python benchmarks/train_ours.py --stage finetune --model MODEL/manifest.json --tokens TOKENS/manifest.json \\
        --work DIRECTORY --output RESULT.json [--options '{"method": "qlora"}'] [--execution '{"micro_batch_size": 4}']

Under ``workflow/scripts/launch.py --gpus N --processes N --`` for several GPUs. Steady state: median over the logged
steps after the first three; ``mean`` is from the seconds between the third step and the last.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "workflow"))

import torch  # noqa: E402

from vlmflow.files import read_json, read_manifest  # noqa: E402
from vlmflow.training.finetune import train_adapter  # noqa: E402
from vlmflow.training.options import Execution, FinetuneOptions, PretrainOptions  # noqa: E402
from vlmflow.training.pretrain import train_projector  # noqa: E402

WARM_UP = 3
GIB = 2**30
_COMMON = {
    "weight_decay": 0.0, "betas": [0.9, 0.999], "warmup_ratio": 0.03, "schedule": "cosine", "max_grad_norm": 1.0,
    "precision": "auto", "seed": 0, "repeat": [1.0], "weights": None,
}  # fmt: skip
LORA = {"rank": 128, "alpha": 256, "dropout": 0.05, "variant": "lora", "vision_rank": 0, "vision_alpha": 256}
NF4 = {"type": "nf4", "double": True}


def run_stage(
    stage: str,
    model: Path,
    tokens: Path,
    work: Path,
    steps: int,
    batch_size: int,
    options: dict[str, Any],
    execution: dict[str, Any],
) -> Path:
    """Train ``steps`` of ``batch_size`` samples with a stage function; returns the folder of its artefact.

    ``options``: what differs from r=128 LoRA with dropout 0.05 (``method``, ``dropout``, ...); ``execution``: keys of
    :class:`Execution`.
    """
    records = sum(dataset["records"] for dataset in read_manifest(tokens)["datasets"])
    common = {**_COMMON, "epochs": steps * batch_size / records, "batch_size": batch_size}
    how = Execution(**{"checkpoint_minutes": 10_000, **execution})
    output, state, features = work / "artefact" / "manifest.json", work / "state", work / "features"
    if stage == "pretrain":
        given = {"learning_rate": 1e-3, "train": ["projector"], "calibrate": 0, **options}
        train_projector(PretrainOptions(**common, **given), model, tokens, how, state, output, features)
        return output.parent
    lora = {**LORA, **{name: options.pop(name) for name in LORA.keys() & options.keys()}}
    given = {"learning_rate": 2e-4, "method": "lora", "projector_learning_rate": None, "train_projector": True,
             **options}  # fmt: skip
    given["lora"] = None if given["method"] == "full" else lora
    given["quantization"] = NF4 if given["method"] == "qlora" else None
    train_adapter(FinetuneOptions(**common, **given), model, [], tokens, how, state, output, features)
    return output.parent


def figures(artefact: Path, batch_size: int) -> dict[str, Any]:
    """Rates and memory of a finished run."""
    lines = [json.loads(line) for line in (artefact / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    provenance = read_json(artefact / "provenance.json")
    steady = [line for line in lines if line["step"] > WARM_UP]
    before = next(line for line in reversed(lines) if line["step"] <= WARM_UP)
    last = lines[-1]
    peak = provenance["hardware"].get("peak_gpu_memory_mb")
    medians = {
        name: statistics.median(line[name] for line in steady)
        for name in ("tokens_per_s", "mfu", "data_wait")
        if all(line.get(name) is not None for line in steady)
    }
    return {
        "samples_per_s": statistics.median(line["samples_per_s"] for line in steady),
        "mean_samples_per_s": (last["step"] - before["step"]) * batch_size / (last["seconds"] - before["seconds"]),
        **medians,
        "peak_gib": None if peak is None else peak * 1e6 / GIB,
        "reserved_gib": torch.cuda.max_memory_reserved() / GIB if torch.cuda.is_available() else None,
        "training_seconds": last["seconds"],
        "losses": [line["loss"] for line in lines],
        "gradient_norms": [line["grad_norm"] for line in lines],
        "training": provenance["training"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=("pretrain", "finetune"), default="finetune")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="a folder of its own, emptied before and after")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=128, help="samples of an optimizer step, all GPUs together")
    parser.add_argument("--options", type=json.loads, default={}, metavar="JSON")
    parser.add_argument(
        "--execution",
        type=json.loads,
        action="append",
        default=[],
        metavar="JSON",
        help="the last value of a key counts",
    )
    parser.add_argument("--memory-gib", type=float, help="cap on GPU memory")
    parser.add_argument("--untold-gib", type=float, help="a cap that the stage is not told of, so that it runs into it")
    parser.add_argument("--profile", type=Path, help="write where the time goes to this JSON file")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    execution = {key: value for given in options.execution for key, value in given.items()}
    if options.memory_gib:
        execution["gpu_memory_gb"] = options.memory_gib * GIB / 1e9
    cap = options.memory_gib or options.untold_gib
    if cap and torch.cuda.is_available():
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(cap * GIB / whole)
    if options.profile:
        import train_profile

        train_profile.profile_every_trainer(options.profile)
    main_process = os.environ.get("RANK", "0") == "0"
    if main_process:
        shutil.rmtree(options.work, ignore_errors=True)
    start = time.perf_counter()
    artefact = run_stage(
        options.stage, options.model, options.tokens, options.work, options.steps, options.batch_size,
        options.options, execution,
    )  # fmt: skip
    if main_process:
        result = {**figures(artefact, options.batch_size), "stage_seconds": time.perf_counter() - start}
        options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print(json.dumps(result))
        shutil.rmtree(options.work)


if __name__ == "__main__":
    main()
