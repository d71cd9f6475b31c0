"""The folder of a training run's state: which run it belongs to, its checkpoints, and what the run remembers."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from vlmflow.differences import differences
from vlmflow.errors import UserError
from vlmflow.files import read_json, sha256_json
from vlmflow.fingerprint import fingerprint

logger = logging.getLogger(__name__)
_IDENTITY, _FACTS, _LOCK = "identity.json", "facts.json", ".lock"
_HASH = re.compile(r"[0-9a-f]{16}")
_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")
_STAGES = ("pretrain.py", "finetune.py")


class Checkpoints:
    """The state of one training run, in ``FOLDER/IDENTITY/checkpoint-STEP``.

    ``identity`` (JSON) names everything that the result depends on: options, hashes of the inputs, number format. The
    training code and the versions of the libraries are added. State of another identity is not continued, which one
    line of the log says; it is deleted with the first checkpoint of this one, so that whoever reads the line can go
    back. ``keep`` checkpoints are kept. Raises :class:`UserError` if ``folder`` cannot be written.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], keep: int) -> None:
        identity = whole_identity(identity)
        self.folder = folder / sha256_json(identity)[:16]
        self._keep = keep
        if not is_main_process():
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = lock_of(folder)
            for unfinished in self.folder.glob(".*"):
                remove(unfinished)
            _write(self.folder / _IDENTITY, identity)
        except OSError as error:
            raise UserError(
                f"training state cannot be kept here: {error.strerror}",
                "name a folder that can be written",
                file=folder,
            ) from error
        for other in self._others():
            if _last(other) is not None:
                changes = differences(read_json(other / _IDENTITY), identity) if (other / _IDENTITY).is_file() else []
                why = "; ".join(changes[:3]) or "made by another version of vlmflow"
                logger.info("the state in %s is not continued: %s; training starts anew", other, why)

    def last(self) -> Path | None:
        """The latest checkpoint. A folder of that name is whole: it got it when it was on the disk."""
        return _last(self.folder)

    def remember(self, **facts: Any) -> None:
        """Keep small JSON values beside the checkpoints, e.g. what was learnt from running out of memory."""
        _write(self.folder / _FACTS, {**self.recall(), **facts})

    def recall(self) -> dict[str, Any]:
        """What earlier starts of this run remembered."""
        path = self.folder / _FACTS
        return dict(read_json(path)) if path.is_file() else {}

    def part(self, step: int) -> Path:
        """The hidden folder below which the Trainer writes the checkpoint of ``step``."""
        return self.folder / f".part-{step}"

    def publish(self, step: int) -> None:
        """Give the written checkpoint of ``step`` its name, and delete what is no longer wanted."""
        name = f"checkpoint-{step}"
        (self.part(step) / name).replace(self.folder / name)
        _sync(self.folder)
        remove(self.part(step))
        for old in _sorted(self.folder)[: -self._keep]:
            hidden = old.with_name(f".{old.name}")  # so that no half-deleted folder has the name of a whole one
            old.replace(hidden)
            remove(hidden)
        for other in self._others():
            remove(other)

    def failure(self, step: int, reason: str) -> UserError:
        """The error to raise when the state of ``step`` could not be saved."""
        free = shutil.disk_usage(self.folder).free / 1e6
        last = self.last()
        onward = f"it goes on from {last}" if last else "it starts from the beginning, as nothing was saved before"
        return UserError(
            f"the state of step {step} could not be saved ({free:.0f} MB free): {reason}",
            f"make room or repair the disk and run the same command again: {onward}",
            file=self.folder,
        )

    def _others(self) -> Iterator[Path]:
        named = (path for path in self.folder.parent.iterdir() if _HASH.fullmatch(path.name))
        return (path for path in named if path != self.folder and path.is_dir())


def whole_identity(identity: dict[str, Any]) -> dict[str, Any]:
    """``identity`` with the training code and the versions of the libraries."""
    return {**identity, "code": _code(), "versions": _versions()}


def is_main_process() -> bool:
    """One process of a run writes what belongs to all."""
    return os.environ.get("RANK", "0") == "0"


def flush(folder: Path) -> None:
    """Wait until every file and folder below ``folder``, and itself, is on the disk."""
    for path in (*folder.rglob("*"), folder):
        _sync(path)


def remove(path: Path) -> None:
    """Delete a file or a folder; a folder that resists is left for the next start."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def lock_of(folder: Path) -> IO[str]:
    """A file in a run's folder, open and locked as long as it is; :class:`UserError` if another process has it."""
    stream = (folder / _LOCK).open("a")
    try:
        fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise UserError(
            "another process trains this stage",
            "stop it, or wait until it is done: it may go on when snakemake itself has ended",
            file=folder,
        ) from None
    return stream


def _write(path: Path, value: Any) -> None:
    """As ``write_json``, and on the disk before it has its name: a power cut leaves the old or the new content."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _sync(part)
    part.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _last(folder: Path) -> Path | None:
    return next(reversed(_sorted(folder)), None)


def _sorted(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]))


def _code() -> str:
    """Hash of the code of both stages and of all that they import."""
    return sha256_json([fingerprint(Path(__file__).with_name(name)) for name in _STAGES])[:16]


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _PACKAGES}
