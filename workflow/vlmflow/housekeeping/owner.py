"""The working directory that a results folder belongs to.

What results were made with (parameters, code) is recorded in ``.snakemake`` of the working directory that made them,
under the paths that they had. In another one, under another name or without those records, the same results would pass
for up to date whatever was edited since.
"""

from __future__ import annotations

import hashlib
import logging
import socket
import time
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlmflow.errors import UserError
from vlmflow.files import MANIFEST, read_json, write_json
from vlmflow.housekeeping.leftover import refuse_leftovers
from vlmflow.housekeeping.process import moment, user
from vlmflow.housekeeping.runlock import locked

_log = logging.getLogger(__name__)
_FOLDER = ".workflow"
_RECORDS = Path(".snakemake") / "metadata"
_ACCEPTED = (
    "they count as they are then, whatever was edited since: `snakemake --touch --forceall` notes the configuration at "
    "hand as what they were made with, `snakemake --forceall` makes them again"
)


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
        """Raise :class:`UserError` if what the results were made with is recorded elsewhere or lost; write nothing."""
        self._refuse()
        if not self._record.exists() and self._finished() and not self._recorded():
            _log.warning("%s: nothing is recorded of what these results were made with; %s", self._results, _ACCEPTED)

    def _refuse(self) -> None:
        owner = self._owner()
        if owner is None:
            return
        if owner["inode_of_results"] == self._results.stat().st_ino and _is_elsewhere(owner):
            raise UserError(
                f"these results belong to the working directory {owner['directory']} on {owner['host']} (user "
                f"{owner['user']}, since {moment(owner['since'])}), where snakemake keeps what they were made with",
                "run snakemake there, or give another folder under `results`, or, to take them over, delete "
                f"{self._record}; {_ACCEPTED}",
                file=self._results,
            )
        if not self._finished():
            return
        if not _mark(owner).exists():
            raise UserError(
                f"what these results were made with is not known here; snakemake kept it in {owner['directory']}/"
                f".snakemake on {owner['host']}, and without it edits are not noticed",
                f"bring that folder back, or, to take the results over, delete {self._record}; {_ACCEPTED}",
                file=self._results,
            )
        if owner["name"] != str(self._results):
            raise UserError(
                f"these results were called {owner['name']}, and snakemake keeps what they were made with under that "
                "name; under another, edits are not noticed",
                f"give them their name back, or, to go on with the new one, delete {self._record}; {_ACCEPTED}",
                file=self._results,
            )

    def _finished(self) -> list[Path]:
        return list(self._results.glob(f"*/*/{MANIFEST}"))

    def _recorded(self) -> bool:
        """Whether snakemake has a record of any finished result, which it names as its FilePersistence does."""
        names = (urlsafe_b64encode(str(path).encode()).decode() for path in self._finished())
        return any((_RECORDS / name).exists() for name in names)

    @contextmanager
    def taken(self, slurm: bool = False) -> Iterator[None]:
        """Let no other run write here while the block runs, and own the folder from now on.

        Raises :class:`UserError` if it belongs to another working directory, if another run writes here, or if jobs of
        one that ended are still there (``slurm``: in the queue too).
        """

        def check() -> None:
            self._refuse()
            if slurm:
                refuse_leftovers(self.tag)

        with locked(self._record.with_name("lock"), check):
            self._own()
            yield

    def _own(self) -> None:
        here, owner, inode = Path.cwd(), self._owner(), self._results.stat().st_ino
        same = owner is not None and owner["inode_of_results"] == inode and _mark(owner).exists()
        record = {
            "directory": str(here),
            "inode": here.stat().st_ino,
            "name": str(self._results),
            "inode_of_results": inode,
            "mark": owner["mark"] if owner is not None and same else uuid.uuid4().hex,
            "host": socket.gethostname(),
            "user": user(),
            "since": time.time() if owner is None else owner["since"],
        }
        if record != owner:
            _mark(record).parent.mkdir(parents=True, exist_ok=True)
            _mark(record).touch()
            write_json(self._record, record)

    def _owner(self) -> dict[str, Any] | None:
        """The record; None if there is none that can be read."""
        keys = ("directory", "inode", "name", "inode_of_results", "mark", "host", "user", "since")
        try:
            record = read_json(self._record)
            return {key: record[key] for key in keys}
        except (UserError, KeyError, TypeError):
            return None


def _mark(owner: dict[str, Any]) -> Path:
    """An empty file beside snakemake's records, which says that these are those of the owner's results."""
    return Path(".snakemake") / "vlmflow" / str(owner["mark"])


def _is_elsewhere(owner: dict[str, Any]) -> bool:
    """Whether the owner is another directory than the current one, which may be the owner under a new name."""
    there, here = Path(owner["directory"]), Path.cwd()
    if there.exists():
        return not here.samefile(there)
    return owner["host"] != socket.gethostname() and here.stat().st_ino != owner["inode"]
