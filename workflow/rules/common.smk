"""Path helpers and target lists; what a job depends on is decided in workflow/vlmflow/plan."""

import os
import shlex
import sys
import time
from pathlib import Path

from snakemake.exceptions import WorkflowError

sys.path.insert(0, str(Path(workflow.basedir) / "workflow"))
from vlmflow.errors import UserError
from vlmflow.plan import CHECKPOINT, Plan, growing
from vlmflow.triggers import teach_snakemake

try:
    plan = Plan(config)
    if "gpu" in workflow.global_resources:
        plan.check_gpus(workflow.global_resources["gpu"].value)
except UserError as error:
    raise WorkflowError(str(error)) from None

RESULTS = plan.results
SCRIPTS = "workflow/scripts"
REPOSITORY = os.path.realpath(workflow.basedir)
if os.path.realpath(SCRIPTS) != os.path.realpath(f"{REPOSITORY}/{SCRIPTS}"):
    raise WorkflowError(
        f"jobs run {SCRIPTS} of the working directory, which is {os.getcwd()}; "
        f"run snakemake in the repository: cd {shlex.quote(REPOSITORY)}"
    )
STARTED = time.time()
# Training saves its state when it is asked to stop; the shell around it must not be gone before.
IGNORING_STOPS = "trap '' TERM USR1;"
CONFIG_FILES = [os.path.relpath(path) for path in workflow.overwrite_configfiles]
teach_snakemake(plan.own_files, in_job=not workflow.is_main_process)


wildcard_constraints:
    name=r"[A-Za-z0-9_-]+",
    finetune=r"[A-Za-z0-9_-]+",
    checkpoint=CHECKPOINT,
    scatteritem=r"\d+-of-\d+",


def manifests(stage, names):
    return [plan.manifest(stage, name) for name in names]


def one_of(names):
    return "|".join(names) or "(?!)"  # no name at all, where there is none


def over_nodes(section):
    """What a training asks of Slurm, as functions of its wildcards."""
    names = ("nodes", "gpu", "mpi", "tasks", "tasks_per_gpu", "gres", "slurm_extra")
    return {
        key: lambda w, key=key: plan.over_nodes(section, w.name)[key] for key in names
    }


def scores():
    return sorted(
        {path for experiment in plan.experiments() for path in plan.scores(experiment)}
    )


def reports():
    return [
        f"{RESULTS}/report/{experiment}/index.html" for experiment in plan.experiments()
    ]


def tables():
    return [f"{RESULTS}/tables/{sweep}/table.tsv" for sweep in plan.sweeps()]


def models():
    return manifests("converted", plan.finetunes()) + manifests(
        "official", plan.officials()
    )


def print_headlines():
    if "MAKELEVEL" in os.environ:
        return  # make prints the headline itself, also when there was nothing to do
    from vlmflow.report.headline import best_variant, headline

    variants = {name for sweep in plan.sweeps() for name in plan.variants(sweep)}
    for experiment in plan.experiments():
        if experiment in variants:
            continue
        comparison = Path(RESULTS, "report", experiment, "comparison.json")
        if comparison.is_file() and comparison.stat().st_mtime >= STARTED:
            print(headline(comparison), file=sys.stderr)
    for table in map(Path, tables()):
        if table.is_file() and table.stat().st_mtime >= STARTED:
            print(best_variant(table), file=sys.stderr)
