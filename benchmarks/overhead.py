"""What the workflow itself takes: a dry run, a run with nothing to do, and each job over its bare script.

    python benchmarks/overhead.py [--rounds 5]

Runs the tiny recipe once in a copy of the repository (about a minute), then measures there. Figures are medians of
seconds; ratios are to ``snakemake --version`` in the same round, which is what importing snakemake takes. Those of jobs
are differences of the shortest times.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from repository import ENVIRONMENT, TINY, copy_repository

TARGETS = {
    "check_leakage": "leakage/qlora.json",
    "evaluate_baselines": "evaluate/held-out/baselines-qlora.json",
    "compare_checkpoints": "report/tiny/comparison.json",
    "render_report": "report/tiny/index.html",
}
CODE = """
import pathlib, sys, time
sys.path.insert(0, "workflow")
from vlmflow.fingerprint import code_of
start = time.perf_counter()
for path in pathlib.Path("workflow/scripts").glob("*.py"):
    code_of(path)
print(time.perf_counter() - start)
"""


def call(folder: Path, *command: str) -> str:
    """Output of a command, which must succeed."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=ENVIRONMENT)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return done.stdout + done.stderr


def timed(folder: Path, *command: str) -> float:
    start = time.perf_counter()
    call(folder, *command)
    return time.perf_counter() - start


def bare_command(folder: Path, target: str) -> list[str]:
    """What snakemake would run for a target, for bash."""
    planned = call(folder, "snakemake", "-n", "-f", *TINY, "--", target)
    line = next(line for line in planned.splitlines() if line.startswith("Shell command: "))
    return ["bash", "-c", line.removeprefix("Shell command: ")]


def startup(folder: Path) -> dict[str, Callable[[], float]]:
    """Name -> measurement in a folder where the tiny recipe is finished and the demo has not begun."""
    return {
        "snakemake --version": lambda: timed(folder, "snakemake", "--version"),
        "dry run of the demo": lambda: timed(folder, "snakemake", "-n"),
        "nothing to do": lambda: timed(folder, "snakemake", *TINY),
        "hashes of the code, kept": lambda: float(call(folder, sys.executable, "-c", CODE)),
        "hashes of the code, anew": lambda: anew(folder),
    }


def anew(folder: Path) -> float:
    (folder / ".snakemake" / "fingerprints.json").unlink()
    return float(call(folder, sys.executable, "-c", CODE))


def jobs(folder: Path, rounds: int) -> None:
    """One forced job at a time, against the same target when there is nothing to do and the bare script."""
    print(f"\n{'job':<22}{'script':>8}{'over it':>9}")
    for rule, name in TARGETS.items():
        target = f"results/tiny/{name}"
        script = bare_command(folder, target)
        ways = (["snakemake", "-f", *TINY, "--", target], ["snakemake", *TINY, "--", target], script)
        taken = [[timed(folder, *way) for way in ways] for _ in range(rounds)]
        forced, idle, bare = map(min, zip(*taken, strict=True))
        print(f"{rule:<22}{bare:8.2f}{forced - idle - bare:9.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as parent:
        folder = copy_repository(Path(parent))
        call(folder, "snakemake", *TINY)
        measurements = startup(folder)
        seconds: dict[str, list[float]] = {name: [] for name in measurements}
        for _ in range(rounds):
            for name, measure in measurements.items():
                seconds[name].append(measure())
        versions = seconds["snakemake --version"]
        print(f"{'':<26}{'seconds':>8}{'ratio':>7}")
        for name, taken in seconds.items():
            ratio = statistics.median(one / other for one, other in zip(taken, versions, strict=True))
            print(f"{name:<26}{statistics.median(taken):8.2f}{ratio:7.2f}")
        jobs(folder, rounds)


if __name__ == "__main__":
    main()
