"""Raw data sets as pictures and annotations.

To add one, write a module here with a function ``prepare_NAME(source, output)`` (both manifests: of the fetched files,
of the folder to write) and name it in ``PREPARERS``; `prepare: NAME` in the configuration then calls it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vlmflow.errors import UserError
from vlmflow.prepare.digits import prepare_digits
from vlmflow.prepare.vlmevalkit import prepare_vlmevalkit

PREPARERS: dict[str, Callable[[Path, Path], None]] = {"digits": prepare_digits, "vlmevalkit": prepare_vlmevalkit}


def prepare_source(kind: str, source: Path, output: Path) -> None:
    """Prepare the raw files beside the manifest ``source`` into the folder of the manifest ``output``."""
    if kind not in PREPARERS:
        raise UserError(f"no preparation '{kind}'", f"there is: {', '.join(sorted(PREPARERS))}", field="prepare")
    PREPARERS[kind](source, output)
