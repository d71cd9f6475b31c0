"""Snakemake's command line, loaded once: each call is a fork, which saves the second that its imports take."""

from __future__ import annotations

import json
import os
import select
import socket
import sys
from pathlib import Path
from typing import Any

from snakemake.cli import main


def serve(listening: socket.socket) -> None:
    """One call a connection: arguments, folder and environment come as a line of JSON, the exit status goes back.

    Ends when standard input does, which whoever started this holds open.
    """
    while select.select([listening, sys.stdin], [], [])[0] == [listening]:
        connection, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            if os.fork() == 0:  # orphaned at once, so that nobody has to wait for it
                _call(connection)
            os._exit(0)
        connection.close()
        os.wait()


def _call(connection: socket.socket) -> None:
    status: Any = 1
    try:
        request = json.loads(connection.makefile().readline())
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        with Path(request["output"]).open("wb") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        sys.argv = ["snakemake", *request["arguments"]]
        main(request["arguments"])
        status = 0
    except SystemExit as end:
        status = end.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        connection.sendall(str(int(status or 0)).encode())
        os._exit(0)


if __name__ == "__main__":
    address = socket.socket(socket.AF_UNIX)
    address.bind(sys.argv[1])
    address.listen()
    print("ready", flush=True)
    serve(address)
