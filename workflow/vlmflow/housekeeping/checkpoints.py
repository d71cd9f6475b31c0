"""`snakemake clean_checkpoints`: the training state of stages that are complete goes."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from vlmflow.errors import UserError
from vlmflow.files import MANIFEST, read_manifest
from vlmflow.housekeeping.sizes import bytes_as_text, size_of
from vlmflow.training.state import lock_of


def clean_checkpoints(results: Path) -> None:
    """Delete the state below ``results/checkpoints`` of each pretrain and finetune whose result is there, and say so.

    State of unfinished training stays, and that which a process has locked.
    """
    freed = 0
    for folder in sorted((results / "checkpoints").glob("*/*/")):
        stage, name = folder.parent.name, folder.name
        if not finished(results, stage, name):
            sys.stdout.write(f"kept: {folder}, whose training is not finished\n")
            continue
        try:
            with lock_of(folder):
                size = size_of(folder, set())
                shutil.rmtree(folder)
        except UserError:
            sys.stdout.write(f"kept: {folder}, where a process trains\n")
            continue
        sys.stdout.write(f"deleted: {folder}, {bytes_as_text(size)}\n")
        freed += size
    sys.stdout.write(f"{bytes_as_text(freed)} freed\n")


def finished(results: Path, stage: str, name: str) -> bool:
    """Whether the result of a training is there, with all its files."""
    try:
        read_manifest(results / stage / name / MANIFEST)
        return True
    except UserError:
        return False
