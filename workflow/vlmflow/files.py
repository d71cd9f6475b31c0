"""Files that are either whole or absent: hashes, atomic writes, manifests of artefact directories."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlmflow.errors import UserError

MANIFEST = "manifest.json"
_TELLING = ("provenance.json", "metrics.jsonl", "tensorboard")
"""Files and folders that tell when, where and how fast an artefact was made; they differ between equal runs."""
MARKER = ".vlmflow"
"""Empty file in every folder that a stage wrote as a whole, and that it may therefore replace."""
_WRITTEN = (MARKER, MANIFEST, "provenance.json", "problems.md")


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hexadecimal SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def read_json(path: Path) -> Any:
    """Parse a JSON file; a missing or broken one is a :class:`UserError` that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("no such file", "run the stage that makes it (snakemake does)", file=path) from None
    except IsADirectoryError:
        raise UserError("a folder, not a file", "name a file in it", file=path) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"not valid JSON: {error}", file=path) from None


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old or the new content, never a part; a failure leaves nothing behind.

    Halves of surrogate pairs, which are no UTF-8, become question marks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8", errors="replace")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; keys keep their order, non-ASCII text stays readable."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def staged_directory(path: Path, *inputs: Path) -> Iterator[Path]:
    """A scratch directory that becomes ``path`` when the block ends without an error, and vanishes otherwise.

    What stood at ``path`` before is replaced as a whole; a killed process leaves ``path`` untouched. Refused
    (:class:`UserError`) is a folder with files that no stage wrote, and one that is, holds or lies in one of ``inputs``
    (folders, files, or manifests of folders).
    """
    path = path.resolve()
    _check_place(path, inputs)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    (part / MARKER).touch()
    if path.exists() and not (path / MANIFEST).exists():
        shutil.rmtree(path)  # left over from a result that is no longer wanted: snakemake removes manifests
    try:
        yield part
        if path.exists():
            shutil.rmtree(path)
        part.replace(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _check_place(path: Path, inputs: Iterable[Path]) -> None:
    advice = "give the manifest a folder of its own, as in NAME/manifest.json"
    if path.exists() and not path.is_dir():
        raise UserError("the folder of the output is a file", advice, file=path)
    if path.is_dir() and any(path.iterdir()) and not any((path / name).exists() for name in _WRITTEN):
        raise UserError(
            "the folder of the output has files that no stage wrote, and would be replaced", advice, file=path
        )
    for place in inputs:
        folder = (place.parent if place.name == MANIFEST else place).resolve()
        if folder.is_relative_to(path) or path.is_relative_to(folder):
            raise UserError(f"the folder of the output would take the place of an input, {place}", advice, file=path)


def write_manifest(directory: Path, **facts: Any) -> dict[str, Any]:
    """List every file of ``directory`` with size and SHA-256 in ``manifest.json``; return what was written.

    ``hash`` identifies the content; files of the directory itself that tell when and how fast it was made are left
    out. The manifest is the small file that stages hand to each other, so that touching a large file re-runs nothing.
    """
    left_out = {directory / name for name in (MANIFEST, MARKER, *_TELLING)}
    paths = sorted(
        path for path in directory.rglob("*") if path.is_file() and left_out.isdisjoint((path, *path.parents))
    )
    files = {
        path.relative_to(directory).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in paths
    }
    content = {name: entry["sha256"] for name, entry in files.items()}
    manifest = {**facts, "hash": sha256_json(content), "files": files}
    write_json(directory / MANIFEST, manifest)
    return manifest


def read_manifest(path: Path, verify: bool = False) -> dict[str, Any]:
    """Read a manifest and check that its files are there with the sizes, and if ``verify`` the contents, it lists."""
    manifest = read_json(path)
    if not isinstance(manifest, dict) or "files" not in manifest or "hash" not in manifest:
        raise UserError("no manifest of a stage", "name the manifest.json of its folder", file=path)
    for name, entry in manifest["files"].items():
        file = path.parent / name
        if not file.is_file() or file.stat().st_size != entry["bytes"]:
            state = "missing" if not file.is_file() else f"{file.stat().st_size} bytes instead of {entry['bytes']}"
            raise UserError(f"listed in {path} but {state}", f"delete {path} and run snakemake again", file=file)
        if verify and sha256_file(file) != entry["sha256"]:
            raise UserError(f"changed since {path} was written", f"delete {path} and run snakemake again", file=file)
    return manifest
