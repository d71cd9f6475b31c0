"""The working directory that a results folder belongs to.

What results were made with (parameters, code) is recorded in ``.snakemake`` of the working directory that made them. In
another one, the same results would pass for up to date whatever was edited since.
"""

from __future__ import annotations

import hashlib
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlmflow.errors import UserError
from vlmflow.files import read_json, write_json
from vlmflow.housekeeping.leftover import refuse_leftovers
from vlmflow.housekeeping.process import moment, user
from vlmflow.housekeeping.runlock import locked

_log = logging.getLogger(__name__)
_FOLDER = ".workflow"


class ResultsRoot:
    """The folder ``results`` as seen from the current working directory."""

    def __init__(self, results: str | Path) -> None:
        self._results = Path(results)
        self._record = self._results / _FOLDER / "owner.json"

    @property
    def tag(self) -> str:
        """Begins the names of the cluster jobs that write here."""
        return "vlmflow-" + hashlib.sha256(str(self._results.resolve()).encode()).hexdigest()[:8]

    def check(self) -> None:
        """Raise :class:`UserError` if the folder belongs to another working directory; write nothing."""
        owner = self._owner()
        if owner is None or _is_here(owner):
            return
        if owner["host"] == socket.gethostname() and not Path(owner["directory"]).exists():
            return  # renamed beyond recognition, or gone
        raise UserError(
            f"these results belong to the working directory {owner['directory']} on {owner['host']} (user "
            f"{owner['user']}, since {moment(owner['since'])}), where snakemake keeps what they were made with",
            "run snakemake there, or give another folder under `results`, or, to take them over as they are, delete "
            f"{self._record}",
            file=self._results,
        )

    @contextmanager
    def taken(self, slurm: bool = False) -> Iterator[None]:
        """Let no other run write here while the block runs, and own the folder from now on.

        Raises :class:`UserError` if it belongs to another working directory, if another run writes here, or if jobs of
        one that ended are still there (``slurm``: in the queue too).
        """

        def check() -> None:
            self.check()
            if slurm:
                refuse_leftovers(self.tag)

        with locked(self._record.with_name("lock"), check):
            self._own()
            yield

    def _own(self) -> None:
        here, owner = Path.cwd(), self._owner()
        if owner is not None and owner["inode"] != here.stat().st_ino:
            _log.warning(
                "%s was made from %s, which is gone, and with it what it was made with: results count as up to date "
                "whatever was edited since. `snakemake --forceall` makes all of them again.",
                self._results,
                owner["directory"],
            )
        since = time.time() if owner is None else owner["since"]
        place = {"directory": str(here), "inode": here.stat().st_ino, "results": self._results.stat().st_ino}
        record = {**place, "host": socket.gethostname(), "user": user(), "since": since}
        if record != owner:
            write_json(self._record, record)

    def _owner(self) -> dict[str, Any] | None:
        """The record; None if there is none that can be read, or if it was copied here with the results."""
        try:
            record = read_json(self._record)
            owner = {key: record[key] for key in ("directory", "inode", "results", "host", "user", "since")}
        except (UserError, KeyError, TypeError):
            return None
        return owner if owner["results"] == self._results.stat().st_ino else None


def _is_here(owner: dict[str, Any]) -> bool:
    """Whether the current directory is the owner, perhaps under a new name."""
    there, here = Path(owner["directory"]), Path.cwd()
    return here.samefile(there) if there.exists() else bool(here.stat().st_ino == owner["inode"])
