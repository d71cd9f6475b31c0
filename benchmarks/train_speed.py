"""Training speed and memory: plain Trainer + peft + bitsandbytes against this project, in one invocation.

    python benchmarks/train_speed.py --work DIRECTORY [--cases finetune cap] [--runs ours-qlora] [--steps 8] [--tiny]

``finetune``  InternVL2-2B shape, r=128 LoRA and projector, 7 tiles and 256 text tokens (128 supervised)
``cap``       the same in nf4 with 7 GiB of GPU memory, batch 4
``pretrain``  LLaVA shape (CLIP-L/336, InternLM2-1.8B), projector alone, 576 picture and about 40 text tokens
``mix``       LLaVA shape, lengths as in LLaVA's instruction mix: packed here, padded there (16 at a time, as LLaVA
              trains, with checkpointing; 8 without)
``cached``    ``pretrain`` over 256 pictures that come again and again, without and with the feature cache
``gpus``      ``finetune`` on one GPU and on two: data parallel, ZeRO-2, ZeRO-3
Each run is a process of its own; models and data are made once in DIRECTORY. Rates are samples per second in the
steady state (median of the steps after the third, the mean beside it), peaks in GiB as the allocator counts. Prints a
table with ratios to the run named under ``against`` and writes speed.json into DIRECTORY.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import train_data
from train_runs import Bench, Run, baseline, ours, run

_CAP = 7.0  # GiB
_TARGETS = {
    "ours-qlora": 23.0, "ours-lora": 23.0, "ours-cap": 14.0, "ours-pretrain": 80.0,
}  # fmt: skip
"""Samples per second that a run must reach on an H200."""
_RATIOS = {"ours-qlora": 3.0, "ours-mix": 1.5, "ours-2-ddp": 1.8, "ours-2-zero2": 1.8}
"""Times the rate of the run that it is compared with."""


def _finetune(bench: Bench) -> list[Run]:
    runs = [
        baseline(bench, "baseline-nf4", "tiles7", "nf4", 4),
        baseline(bench, "baseline-bf16", "tiles7", "lora", 4, "--no-checkpointing"),
    ]
    for method, against in (("qlora", "baseline-nf4"), ("lora", "baseline-bf16")):
        for dropout in (0.05, 0.0):
            name = f"ours-{method}" + ("" if dropout else "-no-dropout")
            options = {"method": method, "dropout": dropout}
            runs.append(ours(name, "tiles7", options=options, baseline=against))
    return runs


def _cap(bench: Bench) -> list[Run]:
    return [
        baseline(bench, "baseline-cap", "tiles7", "nf4", 4, "--memory-gib", str(_CAP)),
        ours("ours-cap", "tiles7", options={"method": "qlora"}, execution={"micro_batch_size": 4}, memory_gib=_CAP),
    ]


def _pretrain(bench: Bench) -> list[Run]:
    return [
        baseline(bench, "baseline-pretrain", "llava", "projector", 32),
        ours("ours-pretrain", "llava", "pretrain", baseline="baseline-pretrain"),
    ]


def _mix(bench: Bench) -> list[Run]:
    return [
        baseline(bench, "baseline-mix-16", "mix", "lora", 16),
        baseline(bench, "baseline-mix-8", "mix", "lora", 8, "--no-checkpointing"),
        ours("ours-mix", "mix", baseline="baseline-mix-8"),
    ]


def _cached(bench: Bench) -> list[Run]:
    records = min(256, bench.steps * bench.batch_size)
    common: dict[str, Any] = {"records": records}
    return [
        ours("ours-uncached", "llava", "pretrain", **common),
        ours("ours-cached", "llava", "pretrain", execution={"feature_cache_gb": 20}, baseline="ours-uncached",
             **common),
    ]  # fmt: skip


def _gpus(bench: Bench) -> list[Run]:
    del bench
    two = [("ddp", None), ("zero2", "zero2"), ("zero3", "zero3")]
    return [
        ours("ours-1-gpu", "tiles7"),
        *(
            ours(f"ours-2-{name}", "tiles7", processes=2, execution={"deepspeed": stage}, baseline="ours-1-gpu")
            for name, stage in two
        ),
    ]


CASES = {"finetune": _finetune, "cap": _cap, "pretrain": _pretrain, "mix": _mix, "cached": _cached, "gpus": _gpus}


def compare(bench: Bench, case: str, only: list[str] | None) -> dict[str, dict[str, Any]]:
    """Run -> its figures, with ``ratio`` to the rate of the run it is compared with."""
    results: dict[str, dict[str, Any]] = {}
    for each in CASES[case](bench):
        if only and each.name not in only:
            continue
        found = run(bench, each)
        base = results.get(each.baseline or "", {})
        if "samples_per_s" in found and "samples_per_s" in base:
            rate = "mean_samples_per_s" if case == "mix" else "samples_per_s"  # steps of unlike lengths: no median
            found |= {"against": each.baseline, "ratio": found[rate] / base[rate]}
        results[each.name] = found
        print_line(case, each.name, found)
    return results


def missed(results: dict[str, dict[str, Any]]) -> list[str]:
    """The targets that were not reached."""
    found = []
    for name, figures in results.items():
        for kind, wanted, unit in (("samples_per_s", _TARGETS, "samples/s"), ("ratio", _RATIOS, "x")):
            if name in wanted and kind in figures and figures[kind] < wanted[name]:
                found.append(f"{name}: {figures[kind]:.2f} {unit}, {wanted[name]} wanted")
    return found


def print_line(case: str, name: str, found: dict[str, Any]) -> None:
    """A row of the table."""
    if "error" in found:
        print(f"{case:9} {name:22} failed: {found['error']}", flush=True)
        return
    cells = [f"{found['samples_per_s']:8.1f}", f"{found['mean_samples_per_s']:8.1f}"]
    for key, form in (("tokens_per_s", "9.0f"), ("mfu", "6.1%"), ("data_wait", "6.1%"), ("peak_gib", "6.1f"),
                      ("reserved_gib", "6.1f")):  # fmt: skip
        width = form.split(".")[0]
        cells.append(f"{found[key]:{form}}" if found.get(key) is not None else f"{'':{width}}")
    cells.append(f"{found['ratio']:5.2f} x {found['against']}" if "ratio" in found else "")
    print(f"{case:9} {name:22} {' '.join(cells)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["finetune", "cap", "pretrain", "mix", "cached"])
    parser.add_argument("--runs", nargs="+", help="only these of the cases' runs")
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps of each run")
    parser.add_argument("--batch-size", type=int, help="samples of an optimizer step; 128, with --tiny 4")
    parser.add_argument("--execution", default="{}", metavar="JSON", help="keys of Execution, for all runs of ours")
    parser.add_argument("--tiny", action="store_true", help="small shapes, for a try on a CPU")
    options = parser.parse_args()
    batch_size = options.batch_size or (4 if options.tiny else 128)
    bench = Bench(options.work.resolve(), options.tiny, options.steps, batch_size, options.execution)
    start = time.perf_counter()
    results: dict[str, Any] = {}
    print(f"{'case':9} {'run':22} {'median':>8} {'mean':>8} {'tokens/s':>9} {'MFU':>6} {'wait':>6} {'peak':>6}"
          f" {'held':>6} ratio", flush=True)  # fmt: skip
    for case in options.cases:
        results[case] = compare(bench, case, options.runs)
        if case == "mix":
            lengths = train_data.lengths(bench.tokens("mix"))
            results["padding"] = {batch: train_data.padded_share(lengths, batch) for batch in (4, 8, 16)}
            for batch, share in results["padding"].items():
                print(f"batches of {batch}: {share:.0%} padding, {1 / (1 - share):.2f} x as many positions")
        results["missed"] = [line for name in CASES if name in results for line in missed(results[name])]
        (bench.work / "speed.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{time.perf_counter() - start:.0f} s on {device}, torch {torch.__version__}")
    if not options.tiny:
        print("\n".join(results["missed"]) or "no target missed")


if __name__ == "__main__":
    main()
