"""Files inside a Python package: one on the package index, or one that is installed. Nothing of it is executed."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from vlmflow.errors import UserError
from vlmflow.fetch.http import OFFLINE
from vlmflow.fetch.local import place
from vlmflow.fetch.names import select, unsafe
from vlmflow.fetch.partial import Fetched, Partial


def fetch_wheel(config: dict[str, Any], partial: Partial) -> Fetched:
    """Take members out of the wheel of ``config['pypi']``, NAME==VERSION; nothing is installed."""
    requirement = config["pypi"]
    _check_chosen(config, requirement)
    wheel = next(partial.state.glob("*.whl"), None) or _download_wheel(requirement, partial.state)
    try:
        with zipfile.ZipFile(wheel) as archive:
            there = [name for name in archive.namelist() if not name.endswith("/") and not unsafe(name)]
            names = select(there, config.get("patterns") or [], config.get("files") or {}, wheel.name)
            for name in names:
                target = partial.files / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(name) as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
    except zipfile.BadZipFile as error:
        wheel.unlink()
        raise UserError(f"damaged archive: {error}", "run again", file=wheel.name) from error
    return Fetched(names, {"pypi": requirement})


def fetch_package(config: dict[str, Any], partial: Partial) -> Fetched:
    """Copy files of the installed distribution ``config['package']``, named as in its wheel, without importing it."""
    name = config["package"]
    _check_chosen(config, name)
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError as error:
        advice = "install it where fetch_source runs, or write `pypi: NAME==VERSION` to take it from its wheel"
        raise UserError(f"package {name} is not installed", advice, field="package") from error
    members = {str(member): member for member in distribution.files or () if not unsafe(str(member))}
    origin = f"{name} {distribution.version}"
    names = select(members, config.get("patterns") or [], config.get("files") or {}, origin)
    for member in names:
        path = Path(str(members[member].locate()))
        if not path.is_file():
            raise UserError(f"listed by {origin} but missing", f"install {name} again", file=path)
        place(path, partial, member, link=False)  # the package manager may share its files between environments
    return Fetched(names, {"package": name, "version": distribution.version})


def _check_chosen(config: dict[str, Any], package: str) -> None:
    if not config.get("files") and not config.get("patterns"):
        raise UserError(f"no file of {package} is named", "list under `files` what to take out of the package")


def _download_wheel(requirement: str, state: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps", "--only-binary=:all:"]
    with tempfile.TemporaryDirectory(dir=state) as folder:
        # Descriptor 2: pip's progress belongs to the log, and standard output stays clean.
        done = subprocess.run([*pip, "--dest", folder, "--", requirement], stdout=2, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            tail = "\n".join(done.stderr.strip().splitlines()[-5:])
            raise UserError(f"pip cannot download {requirement}:\n{tail}", OFFLINE)
        wheel = next(Path(folder).glob("*.whl"))
        return wheel.rename(state / wheel.name)
