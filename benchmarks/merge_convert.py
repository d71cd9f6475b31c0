"""Merging and converting a checkpoint of InternVL2-2B's size: wall time against copying the file, and peak memory.

Weights are random, 4.4 GB in bfloat16; the adapter has rank 128 on every linear layer of language model and vision
tower. Each step is a process of its own. Time includes reading from a cold page cache, the interpreter's start, the
manifest's SHA-256 and flushing to disk; the copy is ``cp`` with the same flushing. Logits are not compared, as on a
machine where the model does not fit in memory (--logits compares them).

    python benchmarks/merge_convert.py [--scale 0.1] [--folder DIRECTORY] [--warm] [--logits]
"""

from __future__ import annotations

import argparse
import math
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "workflow"))
MODEL, RANK = "internvl2-2b", 128
STEPS = ("merge", "deploy", "official", "interpreter")


class Cost(NamedTuple):
    """What a process took."""

    seconds: float
    resident: float
    """Largest resident set in GB, pages of mapped files included."""
    anonymous: float
    """Largest anonymous memory in GB, sampled."""


def make(folder: Path, scale: float) -> None:
    """Write the model, its official files, and an adapter with projector below ``folder``, a tensor at a time."""
    import torch

    from vlmflow.convert.internvl_config import native_config
    from vlmflow.convert.internvl_files import write_processor
    from vlmflow.files import write_json, write_manifest
    from vlmflow.models.directory import PROJECTOR_FILE
    from vlmflow.models.published import published
    from vlmflow.weights.kinds import Kind
    from vlmflow.weights.mapping import SAME, Piece
    from vlmflow.weights.skeleton import expected_tensors
    from vlmflow.weights.stream import write_tensors

    block = torch.randn(1 << 24, generator=torch.Generator().manual_seed(0)) * 0.02

    class Noise:
        """Tensors of random values, all cut from one block."""

        def __init__(self, kinds: Mapping[str, Kind]) -> None:
            self.kinds = kinds

        def read(self, name: str) -> torch.Tensor:
            kind = self.kinds[name]
            size = math.prod(kind.shape)
            return block.repeat(-(-size // len(block)))[:size].view(kind.shape).to(kind.dtype)

    def write(place: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> None:
        kinds = {name: Kind(dtype, shape) for name, shape in shapes.items()}
        pieces = [Piece((name,), (name,), SAME.forward) for name in kinds]
        write_tensors(Noise(kinds), pieces, place, dict(shapes), max_shard_bytes=1 << 60)

    official = published(MODEL).config
    for part in ("llm_config", "vision_config"):
        official[part]["num_hidden_layers"] = max(1, round(scale * official[part]["num_hidden_layers"]))
    config = native_config(official)
    model, adapter = folder / "model", folder / "adapter"
    for place in (model / "official", adapter):
        place.mkdir(parents=True)
    config.save_pretrained(model)
    write_processor(official, None, model)
    write_json(model / "official" / "config.json", official)
    shapes = expected_tensors(config)
    write(model, shapes, torch.bfloat16)
    base = write_manifest(model)["hash"]
    prefix = "multi_modal_projector."
    projector = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
    write(adapter, projector, torch.float32)
    (adapter / "model.safetensors").rename(adapter / PROJECTOR_FILE)
    targets, pairs = low_rank_shapes(config)
    write(adapter, pairs, torch.float32)
    (adapter / "model.safetensors").rename(adapter / "adapter_model.safetensors")
    lora = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "target_modules": targets}
    write_json(adapter / "adapter_config.json", lora)
    write_json(adapter / "provenance.json", {"config": training_options()})
    write_manifest(adapter, base=base)


def low_rank_shapes(config: Any) -> tuple[str, dict[str, tuple[int, ...]]]:
    """The pattern of the adapted layers, and the tensors of their adapter."""
    import torch

    from vlmflow.models.directory import LANGUAGE, VISION
    from vlmflow.models.linears import linear_pattern
    from vlmflow.weights.skeleton import skeleton

    pattern = "|".join(linear_pattern(config, part) for part in (LANGUAGE, VISION))
    pairs: dict[str, tuple[int, ...]] = {}
    for name, module in skeleton(config).named_modules():
        if isinstance(module, torch.nn.Linear) and re.fullmatch(pattern, name):
            pairs[f"base_model.model.{name}.lora_A.weight"] = (RANK, module.in_features)
            pairs[f"base_model.model.{name}.lora_B.weight"] = (module.out_features, RANK)
    return pattern, pairs


def training_options() -> dict[str, Any]:
    """What the provenance of an adapter says about its training."""
    return {
        "epochs": 1, "batch_size": 1, "learning_rate": 1e-4, "weight_decay": 0.0, "betas": [0.9, 0.999],
        "warmup_ratio": 0.0, "schedule": "constant", "max_grad_norm": 1.0, "precision": "bf16", "seed": 0,
        "repeat": [1], "method": "lora", "projector_learning_rate": None, "train_projector": True,
        "lora": {"rank": RANK, "alpha": 2 * RANK, "dropout": 0.0, "vision_rank": RANK, "vision_alpha": 2 * RANK},
    }  # fmt: skip


def run_step(step: str, folder: Path, logits: bool) -> None:
    """One step, in this process."""
    from vlmflow import merge_check
    from vlmflow.convert.internvl import to_official
    from vlmflow.deploy import convert_model
    from vlmflow.files import staged_directory, write_manifest
    from vlmflow.merge import merge_adapter

    if not logits:
        merge_check.available_memory = lambda: 0
    model, output = folder / "model" / "manifest.json", folder / step / "manifest.json"
    if step == "merge":
        merge_adapter({"base": "original"}, model, folder / "adapter" / "manifest.json", output)
    elif step == "deploy":
        convert_model({"dtype": "float16", "max_shard_mb": 2000}, model, output)
    elif step == "official":
        with staged_directory(output.parent) as directory:
            to_official(model.parent, directory)
            write_manifest(directory)


def measured(command: list[str], written: Path, cold: Iterable[Path]) -> Cost:
    """Run ``command``, flush the files it ``written``; ``cold`` files are dropped from the page cache before."""
    for path in cold:
        with path.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    peak = [0]
    start = time.perf_counter()
    passive = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}  # as vlmflow.cli sets it for every script
    process = subprocess.Popen(command, env=passive)
    watcher = threading.Thread(target=_watch, args=(process.pid, peak))
    watcher.start()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{command} failed")
    for path in [written] if written.is_file() else [path for path in written.rglob("*") if path.is_file()]:
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    return Cost(time.perf_counter() - start, usage.ru_maxrss * 1024 / 1e9, peak[0] * 1024 / 1e9)


def _watch(pid: int, peak: list[int]) -> None:
    while True:
        try:
            text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
        except OSError:
            return
        found = re.search(r"RssAnon:\s+(\d+)", text)
        if found is None:  # it has ended
            return
        peak[0] = max(peak[0], int(found[1]))
        time.sleep(0.01)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the layers")
    parser.add_argument("--folder", type=Path, help="where the files are made and deleted (20 GB of room)")
    parser.add_argument("--warm", action="store_true", help="leave the inputs in the page cache")
    parser.add_argument("--logits", action="store_true", help="compare logits too")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        run_step(options.step, options.folder, options.logits)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        # a process of its own, so that no step inherits this one's peak
        maker = f"import sys; sys.path[:0] = {[str(ROOT / 'benchmarks')]!r}; import merge_convert as m; "
        call = f"m.make(m.Path({name!r}), {options.scale})"
        subprocess.run([sys.executable, "-c", maker + call], check=True)
        os.sync()
        report(folder, options)


def report(folder: Path, options: argparse.Namespace) -> None:
    """Run every step and print what it took."""
    source, copy = folder / "model" / "model.safetensors", folder / "copy"
    inputs = [] if options.warm else [*folder.glob("*/*.safetensors")]
    print(f"{source.stat().st_size / 1e9:.2f} GB, page cache {'warm' if options.warm else 'cold'}", flush=True)
    copied = measured(["cp", str(source), str(copy)], copy, inputs)
    copy.unlink()
    print(f"{'copy':12} {copied.seconds:6.1f} s", flush=True)
    for step in STEPS:
        flags = ["--logits"] if options.logits else []
        command = [sys.executable, __file__, "--step", step, "--folder", str(folder), *flags]
        output = folder / step
        cost = measured(command, output, inputs)
        print(
            f"{step:12} {cost.seconds:6.1f} s  {cost.seconds / copied.seconds:5.2f} x copy  "
            f"peak {cost.resident:.2f} GB resident, {cost.anonymous:.2f} GB anonymous",
            flush=True,
        )
        subprocess.run(["rm", "-rf", str(output)], check=True)


if __name__ == "__main__":
    main()
