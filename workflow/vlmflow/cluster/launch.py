"""The launcher of a stage: ``launch.py [--nodes N] [--gpus G] [--processes P] [--cpus C] -- SCRIPT ARGUMENTS``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from vlmflow.cluster.gpus import VISIBLE, granted
from vlmflow.cluster.processes import run_group, run_one, run_over_nodes, shared_store
from vlmflow.cluster.requeue import SlurmJob
from vlmflow.errors import STOPPED, UserError


def main(argv: list[str] | None = None) -> None:
    """Run SCRIPT on the GPUs, processes and nodes asked for, and exit with its status.

    A stage that stopped on request, its state saved, is started again by Slurm if the time limit was the reason.
    """
    arguments = _parser().parse_args(argv)
    job = SlurmJob.current() if arguments.store is None else None
    try:
        status = _over_nodes(arguments) if _starts_nodes(arguments) else _here(arguments)
    except UserError as error:
        sys.exit(f"error: {error}")
    if job and status == STOPPED:
        print(job.requeue(), file=sys.stderr)
    sys.exit(status)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="launch.py", description="Start the processes of a stage.")
    parser.add_argument("--nodes", type=int, default=1, help="nodes of the Slurm job")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs on each node")
    parser.add_argument("--processes", type=int, default=1, help="processes on each node, which train together")
    parser.add_argument("--cpus", type=int, default=1, help="cores on each node; of use with several nodes")
    parser.add_argument("--store", help="HOST:PORT where the processes of all nodes meet; made by the first launcher")
    parser.add_argument("command", nargs="+", metavar="SCRIPT ARGUMENTS", help="after --")
    return parser


def _starts_nodes(arguments: argparse.Namespace) -> bool:
    if arguments.nodes > 1 and "SLURM_JOB_ID" not in os.environ:
        raise UserError("several nodes are started through Slurm", "run this in a Slurm job, or set `nodes` to 1")
    return arguments.nodes > 1 and arguments.store is None


def _over_nodes(arguments: argparse.Namespace) -> int:
    with shared_store() as store:
        options = {"nodes": arguments.nodes, "gpus": arguments.gpus, "processes": arguments.processes, "store": store}
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        command = [str(Path(sys.argv[0])), *words, "--", *arguments.command]
        return run_over_nodes(command, arguments.nodes, arguments.gpus, arguments.cpus)


def _here(arguments: argparse.Namespace) -> int:
    if job := os.environ.get("SLURM_JOB_ID"):
        # also so that the stage's log is never empty: snakemake would not show Slurm's own log of a killed job then
        print(f"Slurm job {job} on {os.environ.get('SLURMD_NODENAME', 'this node')}", file=sys.stderr)
    with granted(arguments.gpus) as gpus:
        if arguments.gpus and not gpus:
            print(f"GPUs asked for: {arguments.gpus}; there is none, so this runs on the CPU", file=sys.stderr)
        environment = dict(os.environ)
        if gpus:
            environment[VISIBLE] = ",".join(gpus)
            environment.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # that of nvidia-smi's numbers
        if arguments.processes == arguments.nodes == 1:
            return run_one(arguments.command, environment)
        return run_group(arguments.command, environment, arguments.processes, arguments.nodes, arguments.store)
