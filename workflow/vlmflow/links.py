"""Files in a second place without a second copy, where the file system allows it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def link_or_copy(path: Path, target: Path, link: bool = True) -> None:
    """A hard link where the file system allows one, or else a copy with the same times."""
    target.unlink(missing_ok=True)
    if link:
        try:
            os.link(path, target)
            return
        except OSError:  # another file system, one without links, or another owner
            pass
    shutil.copy2(path, target)
