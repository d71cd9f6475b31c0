"""A real Slurm on one machine: nodes gpu1 and gpu2 with four GPUs each that are none, accounting, four partitions.

``python tests/slurm/cluster.py up FOLDER`` and ``down FOLDER``, as root, without systemd; the tests do both themselves.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import string
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

NAME = "vlmflow-test"
ACCOUNT = "vlm"
NODES = ("gpu1", "gpu2")
PACKAGES = "slurm-wlm slurmdbd slurm-wlm-mysql-plugin munge mariadb-server"
INSTALL = f"apt-get install -y --no-install-recommends {PACKAGES}"
LINK = Path("/etc/slurm/slurm.conf")
"""Clients look here: Snakemake removes ``SLURM_CONF`` from a job's environment before its inner ``srun``."""
_TEMPLATES = Path(__file__).parent / "conf"
_PROGRAMS = ("munged", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd", "sbatch")
_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
"""Debian's daemons are not on everybody's."""
_SQL = """CREATE DATABASE slurm_acct_db; CREATE USER slurm@'127.0.0.1' IDENTIFIED BY 'slurm';
GRANT ALL ON slurm_acct_db.* TO slurm@'127.0.0.1'; CREATE USER slurm@localhost IDENTIFIED BY 'slurm';
GRANT ALL ON slurm_acct_db.* TO slurm@localhost;"""


class ClusterError(Exception):
    """The cluster cannot be had, and what to do about it."""


def is_up() -> bool:
    """Whether a cluster of these tests answers."""
    return os.geteuid() == 0 and LINK.exists() and _is_ours() and _succeeds("scontrol", "ping")


def start(folder: Path) -> None:
    """Start everything, with all of its state in a new ``folder``; raises ClusterError."""
    _check_machine()
    for name in ("conf", "dev", "log", "run", "spool", "state"):
        (folder / name).mkdir(parents=True)
    _configure(folder)
    try:
        _start_daemons(folder)
    except ClusterError as error:
        stop(folder)
        raise ClusterError(f"{error}; see {folder / 'log'}") from None


def stop(folder: Path) -> None:
    """Cancel all jobs and end the processes that ``start`` started."""
    linked = LINK.is_symlink() and LINK.readlink() == folder / "conf" / LINK.name
    if linked and is_up():
        subprocess.run(["scancel", "--user=root"])
        with contextlib.suppress(ClusterError):
            _wait("jobs to end", lambda: not output("squeue", "--noheader"))
    processes = list(_daemons(folder))
    for process in processes:
        process.terminate()
    for process in psutil.wait_procs(processes, timeout=20)[1]:
        process.kill()
        process.wait()
    if linked:
        LINK.unlink()


def output(*command: str) -> str:
    """What a command prints; raises CalledProcessError."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _check_machine() -> None:
    missing = [program for program in _PROGRAMS if not shutil.which(program, path=_PATH)]
    if missing:
        raise ClusterError(f"these tests need a Slurm; {', '.join(missing)} not found. As root: {INSTALL}")
    if os.geteuid() != 0:
        raise ClusterError("these tests start a Slurm and need root")
    if not _is_ours():
        raise ClusterError(f"{LINK} configures another Slurm, which these tests will not touch")
    with contextlib.suppress(OSError):
        socket.gethostbyname(socket.gethostname())
        return
    raise ClusterError(f"the name of this machine has no address; add '127.0.0.1 {socket.gethostname()}' to /etc/hosts")


def _is_ours() -> bool:
    """Whether there is no configuration of Slurm yet, or one of these tests, be it one left behind."""
    return not LINK.exists() or f"ClusterName={NAME}\n" in LINK.read_text()


def _configure(folder: Path) -> None:
    ports = {name: _free_port() for name in ("controller", "accounting", "database", "node1", "node2")}
    values = {"name": NAME, "folder": str(folder), "host": socket.gethostname().split(".")[0]}
    values |= {f"{name}_port": str(port) for name, port in ports.items()}
    for template in _TEMPLATES.iterdir():
        file = folder / "conf" / template.name
        file.touch(0o700 if file.suffix == ".sh" else 0o600)
        file.write_text(string.Template(template.read_text()).substitute(values))
    for number in range(4):
        (folder / "dev" / f"nvidia{number}").symlink_to("/dev/null")  # Slurm wants character devices
    (folder / "munge.key").touch(0o600)
    (folder / "munge.key").write_bytes(secrets.token_bytes(128))
    LINK.parent.mkdir(exist_ok=True)
    LINK.unlink(missing_ok=True)
    LINK.symlink_to(folder / "conf" / LINK.name)


def _start_daemons(folder: Path) -> None:
    """Each in the foreground of a session of its own, so that its process is known and Ctrl-C does not reach it."""
    munge = folder / "munge.socket"
    _daemon(folder, "munged", "--foreground", "--force", f"--key-file={folder}/munge.key", f"--socket={munge}",
            f"--pid-file={folder}/run/munged.pid", f"--seed-file={folder}/munge.seed")  # fmt: skip
    _wait("munged", lambda: _succeeds("munge", "--no-input", f"--socket={munge}"))

    options = f"--defaults-file={folder}/conf/mariadb.conf"
    _run(folder, "mariadb-install-db", options, "--auth-root-authentication-method=socket", "--skip-test-db")
    _daemon(folder, "mariadbd", options)
    _wait("mariadbd", lambda: _succeeds("mariadb", options, "--execute=SELECT 1"))
    _run(folder, "mariadb", options, f"--execute={_SQL}")

    _daemon(folder, "slurmdbd", "-D")
    _wait("slurmdbd", lambda: _succeeds("sacctmgr", "--noheader", "show", "cluster"))
    for thing in (f"cluster {NAME}", f"account {ACCOUNT} cluster={NAME}", f"user root account={ACCOUNT}"):
        _run(folder, "sacctmgr", "--immediate", "add", *thing.split())

    _daemon(folder, "slurmctld", "-D")
    for node in NODES:
        (folder / "spool" / node).mkdir()
        _daemon(folder, "slurmd", "-D", "-N", node)
    _wait("nodes", lambda: output("sinfo", "--noheader", "--Node", "--partition=gpu", "--format=%t") == "idle\nidle")


def _daemon(folder: Path, program: str, *options: str) -> None:
    pids = folder / "pids"
    pids.mkdir(exist_ok=True)
    name = f"{len(list(pids.iterdir()))}-{program}"
    with (folder / "log" / f"{name}.log").open("w") as log:
        process = subprocess.Popen([program, *options], env=_environment(folder), start_new_session=True,
                                   stdin=subprocess.DEVNULL, stdout=log, stderr=log)  # fmt: skip
    (pids / name).write_text(str(process.pid))


def _daemons(folder: Path) -> Iterator[psutil.Process]:
    for file in (folder / "pids").iterdir():
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(int(file.read_text()))
            if file.name.endswith(f"-{process.name()}"):  # and not another that got the number since
                yield process


def _run(folder: Path, *command: str) -> None:
    done = subprocess.run(command, env=_environment(folder), capture_output=True, text=True)
    if done.returncode:
        raise ClusterError(f"{' '.join(command)}: {done.stdout}{done.stderr}")


def _environment(folder: Path) -> dict[str, str]:
    """Jobs must not inherit what the caller has of another Slurm job."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    return {**outside, "PATH": _PATH, "SLURM_CONF": str(folder / "conf" / "slurm.conf")}


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True).returncode == 0


def _wait(what: str, ready: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            raise ClusterError(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


if __name__ == "__main__":
    {"up": start, "down": stop}[sys.argv[1]](Path(sys.argv[2]).resolve())
