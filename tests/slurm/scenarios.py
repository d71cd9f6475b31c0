"""What is done to workflows that run through Slurm; what must become of it say the tests of the same names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slurm.cluster import ACCOUNT, output
from slurm.submitted import Allocation, Submitted

NewRun = Callable[..., Submitted]
"""Makes a folder of its own for a run of the name given, with other resources of the trainings if need be."""
NEEDS_NETWORK = {"sources", "prepared", ".workflow"}
"""Results that the controller makes itself."""


@dataclass
class Outcome:
    """How a run ended."""

    status: int
    seen: str
    """What the user saw."""
    allocations: list[Allocation]
    results: Path
    saved_steps: int
    """The step of the latest checkpoint when the training was disturbed."""

    @property
    def states(self) -> list[str]:
        return [allocation.state for allocation in self.allocations]

    @property
    def trained(self) -> Path:
        return self.results / "finetune" / "qlora"

    @property
    def training_facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads((self.trained / "provenance.json").read_text())["training"]
        return facts


def whole_recipe_on_two_gpus(new_run: NewRun) -> Outcome:
    run = new_run("whole", gpu=2)
    for folder in run.results.iterdir():
        if folder.name not in NEEDS_NETWORK:
            shutil.rmtree(folder)
    run.start(targets=())
    return ended(run)


def two_nodes_of_two_processes(new_run: NewRun) -> Outcome:
    run = new_run("nodes", nodes=2, gpu=4)
    run.start()
    return ended(run)


def failing(new_run: NewRun) -> Outcome:
    run = new_run("failing")
    script = run.folder / "workflow" / "scripts" / "train_adapter.py"
    script.write_text("raise RuntimeError('broken on purpose')\n" + script.read_text())
    run.start()
    return ended(run)


def out_of_memory(new_run: NewRun) -> Outcome:
    run = new_run("memory", mem_mb=500)
    run.start()
    return ended(run)


def near_the_time_limit(new_run: NewRun) -> Outcome:
    run = new_run("limit")
    run.start()
    job, saved = run.pause_training()
    output("scontrol", "update", f"jobid={job}", "timelimit=5")  # the profile has it warned 300 s before
    run.hurry(job, "timelimit=30")
    return ended(run, saved)


def cancelled_by_somebody(new_run: NewRun) -> Outcome:
    run = new_run("cancelled")
    run.start()
    job, saved = run.pause_training()
    output("scancel", job)
    return ended(run, saved)


def preempted(new_run: NewRun) -> Outcome:
    """A job of higher priority takes the memory that the training has; no other run needs that much."""
    run = new_run("preempted", mem_mb=100_000)
    run.start("--set-resources", "train_adapter:slurm_partition=scavenge")
    job, saved = run.pause_training()
    node = f"--nodelist={run.node(job)}"
    output("srun", "--partition=urgent", f"--account={ACCOUNT}", "--mem=100000", node, "true")
    run.hurry(job)
    return ended(run, saved)


def interrupted(new_run: NewRun) -> Outcome:
    run = new_run("interrupted")
    run.start()
    _, saved = run.pause_training()
    run.interrupt()
    status, seen = run.finish()
    assert status != 0, seen
    run.nothing_is_left()
    run.start()
    return ended(run, saved)


def node_goes_down(new_run: NewRun) -> Outcome:
    run = new_run("node")
    run.start()
    job, saved = run.pause_training()
    node = run.node(job)
    output("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    try:
        run.hurry(job)
        return ended(run, saved)
    finally:
        output("scontrol", "update", f"nodename={node}", "state=resume")


def ended(run: Submitted, saved: int = 0) -> Outcome:
    status, seen = run.finish()
    run.nothing_is_left()
    return Outcome(status, seen, run.allocations(), run.results, saved)


SIDE_BY_SIDE = (whole_recipe_on_two_gpus, near_the_time_limit, preempted, interrupted, cancelled_by_somebody, failing,
                out_of_memory, two_nodes_of_two_processes)  # fmt: skip
