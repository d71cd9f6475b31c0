"""The processes of a stage on one node, and over several."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def run_one(command: list[str], environment: dict[str, str]) -> int:
    """Run one process and pass requests to stop on to it; its status, 128 + N when signal N killed it."""
    child = subprocess.Popen([sys.executable, *command], env=environment, close_fds=False)
    _on_request(child.send_signal)
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C reaches the child too, which ends as it likes
    return _status(child.wait())


def run_group(
    command: list[str], environment: dict[str, str], processes: int, nodes: int = 1, store: str | None = None
) -> int:
    """Run ``processes`` processes here that are one training with those of the other ``nodes``; the first bad status.

    As torchrun does, of which this is the Python interface; ``store`` is the HOST:PORT of :func:`shared_store`.
    Torchrun itself would kill a process 30 seconds after SIGTERM, in the middle of saving, and turn any status into 1.
    """
    import psutil
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.update(environment)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // processes)))
    config = LaunchConfig(
        min_nodes=nodes,
        max_nodes=nodes,
        nproc_per_node=processes,
        run_id=os.environ.get("SLURM_JOB_ID", str(os.getpid())),
        rdzv_backend="c10d",
        rdzv_endpoint=store or "localhost:0",
        rdzv_configs={"is_host": store is None},
        max_restarts=0,
        monitor_interval=0.3,
        signals_to_handle="SIGINT,SIGHUP,SIGQUIT",
    )

    def pass_on(number: int) -> None:
        for child in psutil.Process().children():
            child.send_signal(number)

    _on_request(pass_on)
    try:
        elastic_launch(config, sys.executable)(*command)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        print(
            f"process {rank} of the training was the first to end, with status {_status(failure.exitcode)}",
            file=sys.stderr,
        )
        return _status(failure.exitcode)
    except SignalException as stopped:
        return 128 + stopped.sigval
    return 0


@contextmanager
def shared_store() -> Iterator[str]:
    """HOST:PORT where the processes of all nodes find each other; held open, so that the port clashes with nobody's."""
    from torch.distributed import TCPStore

    host = socket.gethostname()
    store = TCPStore(host, 0, is_master=True, wait_for_workers=False, multi_tenant=True)
    yield f"{host}:{store.port}"


def run_over_nodes(command: list[str], nodes: int, gpus: int, cpus: int) -> int:
    """Run ``command`` once on each node of this Slurm job, with ``gpus`` GPUs and ``cpus`` cores; the worst status.

    When one node has ended, the others have a minute to do so. A request to stop comes to the nodes from Slurm itself.
    """
    srun = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", f"--cpus-per-task={cpus}",
            f"--gres=gpu:{gpus}", "--wait=60", sys.executable, *command]  # fmt: skip
    print(shlex.join(srun), file=sys.stderr)
    _on_request(lambda _: None)
    return _status(subprocess.Popen(srun).wait())


def _on_request(handle: Callable[[int], None]) -> None:
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, _: handle(number))


def _status(code: int) -> int:
    return code if code >= 0 else 128 - code
