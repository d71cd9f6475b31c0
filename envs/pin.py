"""Resolve envs/*.in into pins: requirements.txt (plain .venv), controller.txt, train.yaml and lmdeploy.yaml (conda).

uv reads the packages' metadata and installs nothing, so that this takes seconds and no CUDA library is downloaded.
requirements.txt, controller.txt and train.yaml hold the same version of a package.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

ENVS = Path(__file__).resolve().parent
REQUIREMENTS, CONTROLLER = ENVS.parent / "requirements.txt", ENVS / "controller.txt"
TRAIN, LMDEPLOY = ENVS / "train.yaml", ENVS / "lmdeploy.yaml"
UV = "uv==0.13.9"
TARGET = ("--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28")
CUDA = re.compile("nvidia-|cuda-|triton==")
"""What a GPU build of torch brings on Linux; in the plain .venv that is left to the build that pip chooses."""
HEADER = "# Made by `make pins` from {}; do not edit.\n"
CONDA = """channels:
  - conda-forge
  - nodefaults
dependencies:
  - python=3.11.14
  - pip=25.1.1
  - pip:
"""


def main() -> None:
    """Resolve anew and write every file."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--keep", action="store_true", help="keep every pin that envs/*.in still allow")
    parser.add_argument("--check", action="store_true", help="as --keep, but only tell which files would change")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = resolve(Path(folder), keep=options.keep or options.check)
    stale = [path for path, text in files.items() if not path.is_file() or path.read_text() != text]
    if options.check:
        sys.exit(f"stale: {', '.join(path.name for path in stale)}; run `make pins`" if stale else 0)
    for path in stale:
        path.write_text(files[path])


def resolve(folder: Path, keep: bool) -> dict[Path, str]:
    """The text that every file should have; uv works in ``folder``."""
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), UV], check=True)

    def compiled(*sources: str, kept: Iterable[Path] = (), constraint: Iterable[str] = ()) -> list[str]:
        limits, output = folder / "limits.txt", folder / "pins.txt"
        limits.write_text("\n".join(constraint))
        # uv prefers the versions that its output file already has
        output.write_text("\n".join(pin for path in kept if keep and path.is_file() for pin in pins(path)))
        command = [str(folder / "bin" / "uv"), "pip", "compile", "--quiet", "--no-header", "--no-annotate", *TARGET]
        command += ["--constraint", str(limits), "--output-file", str(output)]
        subprocess.run([*command, *(str(ENVS / f"{source}.in") for source in sources)], check=True)
        return output.read_text().split()

    everything = compiled("controller", "train", "dev", kept=(REQUIREMENTS, TRAIN))
    plain = [pin for pin in everything if not CUDA.match(pin)]
    controller = compiled("controller", constraint=everything)
    train = compiled("train", constraint=everything)
    lmdeploy = compiled("lmdeploy", kept=(LMDEPLOY,))
    return {
        REQUIREMENTS: _listed(plain, "envs/controller.in, envs/train.in and envs/dev.in"),
        CONTROLLER: _listed(controller, "envs/controller.in"),
        TRAIN: _conda(train, "envs/train.in"),
        LMDEPLOY: _conda(lmdeploy, "envs/lmdeploy.in"),
    }


def pins(path: Path) -> list[str]:
    """NAME==VERSION of every Python package that a file of pins lists, a conda environment's too."""
    return re.findall(r"^(?:    - )?(\S+==\S+)$", path.read_text(), re.MULTILINE)


def _listed(pinned: list[str], sources: str) -> str:
    return HEADER.format(sources) + "".join(f"{pin}\n" for pin in pinned)


def _conda(pinned: list[str], sources: str) -> str:
    return HEADER.format(sources) + CONDA + "".join(f"    - {pin}\n" for pin in pinned)


if __name__ == "__main__":
    main()
