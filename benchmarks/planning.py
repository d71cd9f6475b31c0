"""What `snakemake -n` costs: the demo against a sweep of many variants of it, and where the time goes.

    python benchmarks/planning.py [--variants 100] [--runs 3]

Each is planned in a copy of the repository, in turn, so that both see the same machine: first without any result, then
with all of them, which stand-ins for the stages' scripts have made (a few minutes).
"""

from __future__ import annotations

import argparse
import os
import pstats
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from repository import copy_repository  # noqa: E402

_SNAKEMAKE = Path(sys.executable).parent / "snakemake"
_STAND_IN = """
import pathlib, sys
folder = pathlib.Path(sys.argv[sys.argv.index("--output") + 1]).parent
folder.mkdir(parents=True, exist_ok=True)
stem = pathlib.Path(sys.argv[sys.argv.index("--output") + 1]).stem
names = [f"{stem}.{suffix}" for suffix in ("json", "tsv", "md", "html")]
for name in [*names, "metrics.jsonl", "report.md", "predictions.jsonl"]:
    (folder / name).write_text("{}")
"""
_PHASES = (
    ("importing snakemake, its plugins, vlmflow", "importlib._bootstrap>", "_find_and_load"),
    ("reading the Snakefile", "snakemake/workflow.py", "include"),
    ("  of it, the configuration and its sweeps", "vlmflow/config.py", "resolve"),
    ("  of it, hashes of the code", "vlmflow/fingerprint.py", "code_of"),
    ("the graph of jobs, and which to run", "snakemake/workflow.py", "_build_dag"),
    ("parameters and commands of jobs, printed", "snakemake/scheduling/job_scheduler.py", "schedule"),
    ("everything", "~", "<built-in method builtins.exec>"),
)
"""What is measured, and the file and function that it is the time of, with all that this calls."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", type=int, default=100)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        clone = copy_repository(Path(place))
        for script in (clone / "workflow" / "scripts").glob("*.py"):
            script.write_text(_STAND_IN)
        demo, sweep = _write_configs(clone, options.variants)
        for state in ("nothing is there", "everything is there"):
            print(f"{state}:")
            if state.startswith("everything"):
                for config in (demo, sweep):
                    _snakemake(config, "--quiet", "all")
            _time([demo, sweep], options.runs)
            for config in (demo, sweep):
                _print_phases(config)


def _write_configs(folder: Path, variants: int) -> tuple[Path, Path]:
    """The demo, and a sweep over its experiment: ten learning rates, the rest of ranks."""
    demo = yaml.safe_load((ROOT / "config" / "config.yaml").read_text(encoding="utf-8"))
    rates, ranks = [round(1e-4 * (step + 1), 6) for step in range(10)], list(range(1, variants // 10 + 1))
    grid = {"finetune.learning_rate": rates, "finetune.lora.rank": ranks}
    sweep = {**demo, "results": "results/sweep", "sweeps": {"many": {"base": "digits", "grid": grid}}}
    for name, content in (("demo", demo), ("sweep", sweep)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder / "demo.yaml", folder / "sweep.yaml"


def _time(configs: list[Path], runs: int) -> None:
    seconds: dict[Path, list[float]] = {config: [] for config in configs}
    for config in configs * runs:
        started, used = time.perf_counter(), _cpu()
        output = _snakemake(config, "-n")
        seconds[config].append(time.perf_counter() - started)
        jobs = re.search(r"^total\s+(\d+)$", output, re.MULTILINE)
        spent = f"{seconds[config][-1]:6.2f} s, {_cpu() - used:5.2f} s of a core"
        print(f"  {config.stem:6} {jobs[1] if jobs else 0:>5} jobs  {spent}", flush=True)
    one, many = (statistics.median(taken) for taken in seconds.values())
    print(f"  median: demo {one:.2f} s, sweep {many:.2f} s, ratio {many / one:.1f}")


def _cpu() -> float:
    """Seconds of processors that finished child processes have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _print_phases(config: Path) -> None:
    """Seconds by phase, under the profiler, which makes everything slower."""
    profile = config.with_suffix(".prof")
    _snakemake(config, "-n", command=(sys.executable, "-m", "cProfile", "-o", str(profile), str(_SNAKEMAKE)))
    found = pstats.Stats(str(profile)).stats.items()  # type: ignore[attr-defined]
    print(f"  {config.stem}, seconds under the profiler:")
    for phase, file, function in _PHASES:
        times = [facts[3] for (path, _, name), facts in found if path.endswith(file) and name == function]
        print(f"    {phase:44} {max(times, default=0):6.2f}")


def _snakemake(config: Path, *arguments: str, command: tuple[str, ...] = (str(_SNAKEMAKE),)) -> str:
    """Output of a call of snakemake beside ``config``."""
    headline = {"MAKELEVEL": "1"}  # none: there is nothing in what the stand-ins wrote
    environment = {**os.environ, **headline, "PATH": f"{_SNAKEMAKE.parent}:{os.environ['PATH']}"}
    line = [*command, *arguments, "--configfile", config.name]
    done = subprocess.run(line, cwd=config.parent, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


if __name__ == "__main__":
    main()
