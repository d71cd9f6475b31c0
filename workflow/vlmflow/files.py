"""Files that are either whole or absent: hashes, atomic writes, manifests of artefact directories."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlmflow.errors import UserError

MANIFEST = "manifest.json"
_TELLING = ("provenance.json", "metrics.jsonl")
"""Files that tell when, where and how fast an artefact was made; they differ between equal runs."""


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
    except ValueError as error:
        raise UserError(f"not valid JSON: {error}", file=path) from None


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old or the new content, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; keys keep their order, non-ASCII text stays readable."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def staged_directory(path: Path) -> Iterator[Path]:
    """A scratch directory that becomes ``path`` when the block ends without an error, and vanishes otherwise.

    What stood at ``path`` before is replaced as a whole; a killed process leaves ``path`` untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        yield part
        if path.exists():
            shutil.rmtree(path)
        part.replace(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_manifest(directory: Path, **facts: Any) -> dict[str, Any]:
    """List every file of ``directory`` with size and SHA-256 in ``manifest.json``; return what was written.

    ``hash`` identifies the content; files of the directory itself that tell when and how fast it was made are left
    out. The manifest is the small file that stages hand to each other, so that touching a large file re-runs nothing.
    """
    left_out = {directory / name for name in (MANIFEST, *_TELLING)}
    paths = sorted(path for path in directory.rglob("*") if path.is_file() and path not in left_out)
    files = {
        path.relative_to(directory).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in paths
    }
    content = {name: entry["sha256"] for name, entry in files.items()}
    manifest = {**facts, "hash": sha256_json(content), "files": files}
    write_json(directory / MANIFEST, manifest)
    return manifest


def read_manifest(path: Path) -> dict[str, Any]:
    """Read a manifest and check that the files it lists are there with the sizes it lists."""
    manifest = read_json(path)
    for name, entry in manifest["files"].items():
        file = path.parent / name
        if not file.is_file() or file.stat().st_size != entry["bytes"]:
            state = "missing" if not file.is_file() else f"{file.stat().st_size} bytes instead of {entry['bytes']}"
            raise UserError(f"listed in {path} but {state}", f"delete {path} and run snakemake again", file=file)
    return manifest
