"""Where the time of a training step goes, before (plain Trainer) and after (this project), by torch.profiler.

    python benchmarks/train_profile.py --work DIRECTORY [--tiny] [--runs baseline-nf4 ours-qlora] [--execution JSON]

One optimizer step of ``--samples`` samples after three others, InternVL2-2B shape, 7 tiles and 256 text tokens. Time on
the GPU is that of the kernels which were launched inside the ranges ``data``, ``vision``, ``projector``, ``language``,
``loss``, ``backward`` and ``optimizer``; what other threads launch is autograd's, so backward (recomputation
included). Waiting for data and idle time are shares of the clock. On a CPU all times are those of the ranges. Writes
profile.json and kernels.txt, the 15 kernels that took most time, into DIRECTORY.
"""

from __future__ import annotations

import argparse
import bisect
import json
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from heapq import nlargest
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS

PHASES = ("data", "vision", "projector", "language", "loss", "backward", "optimizer")
OTHER = "other"
_AFTER = 3  # optimizer steps before the profiled one
_LAUNCHES, _WORK = ("cuda_runtime", "cuda_driver"), ("kernel", "gpu_memcpy", "gpu_memset")
_PREFIXES = {"enumerate(DataLoader)": "data", "Optimizer.step#": "optimizer"}  # torch's own ranges
Event = dict[str, Any]


class Profile(TrainerCallback):
    """Profiles one optimizer step, the fetching of its data included, and writes what :func:`analyse` finds."""

    def __init__(self, output: Path) -> None:
        self._output = output
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        self._profile = profile(activities=activities, acc_events=True)
        self._started = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by the Trainer after every optimizer step."""
        del args, control
        if state.global_step not in (_AFTER, _AFTER + 1):
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if state.global_step == _AFTER:
            self._profile.start()
            self._started = time.perf_counter()
            return
        seconds = time.perf_counter() - self._started
        self._profile.stop()
        with tempfile.TemporaryDirectory() as folder:
            trace = Path(folder) / "trace.json"
            self._profile.export_chrome_trace(str(trace))
            events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
        self._output.write_text(json.dumps(analyse(events, seconds), indent=2) + "\n", encoding="utf-8")


def profile_every_trainer(output: Path) -> None:
    """Every Trainer that is made from now on is profiled."""
    DEFAULT_CALLBACKS.append(Profile(output))


def name_ranges(network: Any, trainer: Any) -> None:
    """Give the parts of a plain model and Trainer the names that the project's engine uses."""
    core = network.get_base_model() if hasattr(network, "get_base_model") else network
    parts = {"vision": core.model.vision_tower, "projector": core.model.multi_modal_projector,
             "language": core.model.language_model, "loss": core.lm_head}  # fmt: skip
    for name, module in parts.items():
        module.forward = _named(name, module.forward)
    core.loss_function = _named("loss", core.loss_function)
    trainer.accelerator.backward = _named("backward", trainer.accelerator.backward)


def _named(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def inside(*args: Any, **kwargs: Any) -> Any:
        with record_function(name):
            return function(*args, **kwargs)

    return inside


class Ranges:
    """The named ranges of one thread: which phase is a moment in?"""

    def __init__(self, events: Iterable[tuple[float, float, str]]) -> None:
        """``events``: beginning and end in microseconds, and phase."""
        self._outer: list[tuple[float, float, str]] = []
        for start, end, phase in sorted(events, key=lambda event: (event[0], -event[1])):
            if not self._outer or start >= self._outer[-1][1]:
                self._outer.append((start, end, phase))
            else:  # a range inside another counts as its own: cut the outer one in two
                begin, stop, outer = self._outer.pop()
                parts = [(begin, start, outer), (start, end, phase), (end, stop, outer)]
                self._outer += [part for part in parts if part[1] > part[0]]
        self._starts = [start for start, _, _ in self._outer]

    def phase(self, moment: float) -> str | None:
        """The phase at ``moment``, None outside all ranges."""
        place = bisect.bisect_right(self._starts, moment) - 1
        return self._outer[place][2] if place >= 0 and moment < self._outer[place][1] else None

    def durations(self) -> dict[str, float]:
        """Microseconds of each phase."""
        total: dict[str, float] = defaultdict(float)
        for start, end, phase in self._outer:
            total[phase] += end - start
        return dict(total)


def analyse(events: list[Event], seconds: float) -> dict[str, Any]:
    """Milliseconds of each phase by the clock of the main thread and by the GPU's kernels, and the largest kernels.

    ``events`` are those of a Chrome trace of torch.profiler, ``seconds`` what it covers.
    """
    named: dict[int, list[tuple[float, float, str]]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "user_annotation" and (phase := _phase(event["name"])):
            named[event["tid"]].append((event["ts"], event["ts"] + event["dur"], phase))
    main = max(named, key=lambda thread: len(named[thread]))
    ranges = Ranges(named[main])
    launches = {
        event["args"]["correlation"]: event
        for event in events
        if event.get("cat") in _LAUNCHES and "correlation" in event.get("args", {})
    }
    on_gpu: dict[str, float] = defaultdict(float)
    kernels: dict[str, float] = defaultdict(float)
    calls: Counter[str] = Counter()
    busy = [event for event in events if event.get("cat") in _WORK]
    for event in busy:
        launch = launches.get(event["args"].get("correlation"))
        phase = OTHER
        if launch is not None:
            phase = (ranges.phase(launch["ts"]) or OTHER) if launch["tid"] == main else "backward"
        on_gpu[phase] += event["dur"]
        kernels[event["name"]] += event["dur"]
        calls[event["name"]] += 1
    return {
        "wall_ms": seconds * 1e3,
        "clock_ms": {phase: us / 1e3 for phase, us in ranges.durations().items()},
        "gpu_ms": {phase: us / 1e3 for phase, us in on_gpu.items()},
        "idle_ms": seconds * 1e3 - _covered(busy) / 1e3 if busy else None,
        "kernels": [[name, us / 1e3, calls[name]] for name, us in nlargest(15, kernels.items(), key=itemgetter(1))],
    }


def _phase(name: str) -> str | None:
    found = next((phase for prefix, phase in _PREFIXES.items() if name.startswith(prefix)), None)
    return found or (name if name in PHASES else None)


def _covered(events: list[Event]) -> float:
    """Microseconds in which at least one of the events runs."""
    total, end = 0.0, float("-inf")
    for event in sorted(events, key=lambda each: each["ts"]):
        stop = event["ts"] + event["dur"]
        total += max(0.0, stop - max(event["ts"], end))
        end = max(end, stop)
    return total


def shares(found: dict[str, Any]) -> dict[str, float]:
    """Share (0 to 1) of the step's wall time: phases on the GPU, waiting for data by the clock, idle."""
    times = found["gpu_ms"] or found["clock_ms"]
    result = {phase: times.get(phase, 0.0) / found["wall_ms"] for phase in (*PHASES[1:], OTHER)}
    result["data"] = found["clock_ms"].get("data", 0.0) / found["wall_ms"]
    if found["idle_ms"] is None:
        result[OTHER] = 1 - sum(result.values())
    else:
        result["idle"] = found["idle_ms"] / found["wall_ms"]
    return result


def main() -> None:
    from train_runs import Bench, profiled_runs, run

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=32, help="of the profiled optimizer step")
    parser.add_argument("--runs", nargs="+", help="only these")
    parser.add_argument("--execution", default="{}", metavar="JSON", help="keys of Execution, for all runs of ours")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    bench = Bench(options.work.resolve(), options.tiny, _AFTER + 2, options.samples, options.execution)
    results, kernels = {}, []
    for each in profiled_runs(bench):
        if options.runs and each.name not in options.runs:
            continue
        output = bench.work / f"profile-{each.name}.json"
        done = run(bench, each, "--profile", str(output))
        if "error" in done:
            print(f"{each.name} failed: {done['error']}")
            continue
        results[each.name] = {**json.loads(output.read_text(encoding="utf-8")), "samples_per_s": done["samples_per_s"]}
        kernels += [
            each.name,
            *(f"{ms:10.2f} ms {n:7d} x  {name}" for name, ms, n in results[each.name]["kernels"]),
            "",
        ]
    (bench.work / "profile.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (bench.work / "kernels.txt").write_text("\n".join(kernels), encoding="utf-8")
    print_table(results, bench.batch_size)


def print_table(results: dict[str, Any], samples: int) -> None:
    """A row for each phase: milliseconds of wall time per sample, and the share of it."""
    print(f"{'ms per sample':14}" + "".join(f"{name:>26}" for name in results))
    print(f"{'whole step':14}" + "".join(f"{found['wall_ms'] / samples:19.2f}{'':7}" for found in results.values()))
    for phase in ("data", *PHASES[1:], OTHER, "idle"):
        cells = []
        for found in results.values():
            share = shares(found).get(phase, 0.0)
            cells.append(f"{share * found['wall_ms'] / samples:19.2f} {share:6.1%}")
        print(f"{phase:14}" + "".join(cells))


if __name__ == "__main__":
    main()
