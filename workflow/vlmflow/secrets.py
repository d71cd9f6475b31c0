"""Tokens and passwords stay with the process that runs snakemake: a cluster gives every job the whole environment.

Slurm also keeps that environment in files of its own and, on some sites, in its database. Only jobs on snakemake's own
machine need a token: they download, or ask a paid server.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, MutableMapping
from pathlib import Path

HELD = "VLMFLOW_SECRETS"
"""Names the file that holds the secrets; it says nothing to another user or on another machine."""
_SECRET = re.compile(r"(TOKEN|API_KEY)$|SECRET|PASSWORD")


def hide(environment: MutableMapping[str, str], also: Collection[str] = (), but: Collection[str] = ()) -> None:
    """Move variables that look like secrets, and those in ``also``, out of ``environment``; leave those in ``but``.

    They go into memory of this process that its user can read as a file; nothing is left of it, however the process
    ends.
    """
    names = [name for name in environment if (_SECRET.search(name.upper()) or name in also) and name not in but]
    if names:
        descriptor = os.memfd_create("secrets")
        os.fchmod(descriptor, 0o600)
        os.write(descriptor, json.dumps({name: environment.pop(name) for name in names}).encode())
        environment[HELD] = f"/proc/{os.getpid()}/fd/{descriptor}"


def take_back(environment: MutableMapping[str, str]) -> None:
    """Put what :func:`hide` moved back into ``environment``, in a job on the same machine."""
    if HELD in environment:
        environment.update(json.loads(Path(environment.pop(HELD)).read_text()))
