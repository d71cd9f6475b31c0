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

try:
    plan = Plan(config)
except UserError as error:
    raise WorkflowError(str(error)) from None

RESULTS = plan.results
SCRIPTS = "workflow/scripts"
STARTED = time.time()
# Training saves its state when it is asked to stop; the shell around it must not be gone before.
IGNORING_STOPS = "trap '' TERM USR1;"
CONFIG_FILES = [os.path.relpath(path) for path in workflow.overwrite_configfiles]


wildcard_constraints:
    name=r"[A-Za-z0-9_-]+",
    finetune=r"[A-Za-z0-9_-]+",
    checkpoint=CHECKPOINT,


def manifests(stage, names):
    return [plan.manifest(stage, name) for name in names]


def one_of(names):
    return "|".join(names) or "(?!)"  # no name at all, where there is none


def over_nodes(section):
    """Resources of a training on several nodes, as functions of its wildcards."""
    names = ("nodes", "mpi", "tasks", "tasks_per_gpu", "gres")
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


def models():
    return manifests("converted", plan.finetunes()) + manifests(
        "official", plan.officials()
    )


def print_headlines():
    if "MAKELEVEL" in os.environ:
        return  # make prints the headline itself, also when there was nothing to do
    from vlmflow.report.headline import headline

    for comparison in (Path(page).with_name("comparison.json") for page in reports()):
        if comparison.is_file() and comparison.stat().st_mtime >= STARTED:
            print(headline(comparison), file=sys.stderr)


# `snakemake NAME` builds the experiment NAME.
for experiment in plan.config["experiments"]:

    rule:
        name:
            experiment
        input:
            f"{RESULTS}/report/{experiment}/index.html",
        localrule: True
