"""Resolve envs/*.in into requirements.txt (plain venv, development tools included) and envs/train.yaml (conda).

One fresh virtual environment is installed from the direct dependencies; what pip chose is written down exactly, so that
conda and the plain environment hold the same versions.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ENVS = Path(__file__).parent
HEADER = "# Made by `make pins` from {sources}; do not edit.\n"
CONDA = """channels:
  - conda-forge
  - nodefaults
dependencies:
  - python=3.11
  - pip
  - pip:
"""


def resolve(*sources: Path) -> list[str]:
    """What pip installs for the given requirement files, as NAME==VERSION without local labels such as +cpu."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        pip = [str(Path(folder) / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
        # torch first: the others then keep the build that was chosen for it
        torch = [line for source in sources for line in source.read_text().splitlines() if line.startswith("torch==")]
        environment = {**os.environ, "DS_BUILD_OPS": "0"}
        subprocess.run([*pip, "install", *torch], check=True)
        files = [argument for source in sources for argument in ("-r", str(source))]
        subprocess.run([*pip, "install", *files], check=True, env=environment)
        frozen = subprocess.run([*pip, "freeze"], check=True, capture_output=True, text=True).stdout
    # the CUDA libraries that a GPU build of torch brings are torch's own choice per platform
    lines = [line.split("+")[0] for line in frozen.splitlines() if not line.startswith(("nvidia-", "triton"))]
    return [line for line in lines if "==" in line]


def main() -> None:
    """Write both files."""
    train, dev = ENVS / "train.in", ENVS / "dev.in"
    pinned = resolve(train)
    conda = "".join(f"    - {line}\n" for line in pinned)
    (ENVS / "train.yaml").write_text(HEADER.format(sources="envs/train.in") + CONDA + conda)
    everything = "".join(f"{line}\n" for line in resolve(train, dev))
    (ENVS.parent / "requirements.txt").write_text(HEADER.format(sources="envs/train.in and envs/dev.in") + everything)


if __name__ == "__main__":
    sys.exit(main())
