"""Hashes of the code that a stage runs, so that an edit re-runs the stages which use it and no others."""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).resolve().parent
_KEPT = Path(".snakemake") / "fingerprints.json"
_MOST_KEPT = 2000


def fingerprint(script: Path) -> str:
    """One hash of ``script`` and of all that :func:`code_of` finds below it."""
    return hashlib.sha256(json.dumps(code_of(script), sort_keys=True).encode()).hexdigest()[:16]


@functools.cache
def code_of(script: Path) -> dict[str, str]:
    """File (relative to ``workflow/``) -> hash, of ``script`` and every module of this package that it imports.

    Imports count wherever they are, of packages too, and so does the name of a module as a string. Comments,
    docstrings, layout, ``__version__`` and the version of Python do not. A data file beside a module and named after it
    (``render.html.j2`` beside ``render.py``) counts with the module.
    """
    script = script.resolve()
    found: dict[Path, str] = {}
    waiting = [script]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found[path], imported = _module(path)
            files = _files()
            waiting += [files[name] for name in imported if name in files]
            if path != script:
                found |= {data: _hash(data.read_bytes()) for data in _data_files().get(path, ())}
    _kept().write()
    return {path.relative_to(_PACKAGE.parent).as_posix(): found[path] for path in sorted(found)}


def _module(path: Path) -> tuple[str, list[str]]:
    """The hash of a module, and the names of modules that it may import."""
    name = ".".join(path.relative_to(_PACKAGE.parent).with_suffix("").parts)
    source = path.read_bytes()
    key = hashlib.sha256(name.encode() + b"\0" + source).hexdigest()[:32]
    kept = _kept()
    if key not in kept.known:
        parts: list[str] = []
        names = {name}
        package = name.removesuffix(".__init__") if path.name == "__init__.py" else name.rpartition(".")[0]
        _describe(ast.parse(source, filename=str(path)), package, parts, names)
        ours = {above for used in names if used.split(".")[0] == _PACKAGE.name for above in _with_packages(used)}
        kept.known[key] = (_hash("\0".join(parts).encode()), sorted(ours))
        kept.grown = True
    return kept.known[key]


def _describe(node: ast.AST, package: str, parts: list[str], names: set[str]) -> None:
    """Append to ``parts`` what a tree consists of, in the same words for every version of Python, its imports to
    ``names``.

    Empty and absent fields are left out: newer versions have more of them.
    """
    parts.append(type(node).__name__)
    names.update(_mentioned(node, package))
    for field in node._fields:
        value: Any = getattr(node, field, None)
        if isinstance(value, ast.AST):
            if not isinstance(value, ast.expr_context):
                parts.append(field)
                _describe(value, package, parts, names)
        elif isinstance(value, list) and value:
            parts.append(field)
            for item in value:
                if not isinstance(item, ast.AST):
                    parts.append(repr(item))
                elif not _says_nothing(item):
                    _describe(item, package, parts, names)
        elif value not in (None, []) or isinstance(node, ast.Constant):
            parts.append(f"{field}={value!r}")
    parts.append(".")


def _says_nothing(node: ast.AST) -> bool:
    """Whether a statement is a docstring, of an attribute too, or the version, which a release alone changes."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    target = node.targets[0] if isinstance(node, ast.Assign) else None
    return isinstance(target, ast.Name) and target.id == "__version__"


def _mentioned(node: ast.AST, package: str) -> Iterator[str]:
    """Names that may be modules: imported ones, and strings that start as modules of this package do."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        module = ".".join([*above, *([node.module] if node.module else [])])
        yield from (module, *(f"{module}.{alias.name}" for alias in node.names))
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(f"{_PACKAGE.name}."):
        yield node.value


def _with_packages(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts) + 1)]


@functools.cache
def _files() -> dict[str, Path]:
    """Name -> file of every module of this package."""
    relative = {path: path.relative_to(_PACKAGE.parent).with_suffix("").parts for path in _PACKAGE.rglob("*.py")}
    return {".".join(parts).removesuffix(".__init__"): path for path, parts in relative.items()}


@functools.cache
def _data_files() -> dict[Path, list[Path]]:
    """Module -> files beside it that are named after it."""
    found: dict[Path, list[Path]] = {}
    for path in sorted(_PACKAGE.rglob("*.*")):
        module = path.with_name(path.name.split(".")[0] + ".py")
        if path.suffix not in (".py", ".pyc") and path.parent.name != "__pycache__" and module.is_file():
            found.setdefault(module, []).append(path)
    return found


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:8]


class _Kept:
    """Hashes and imports by a hash of the source itself, kept with what snakemake keeps from one run to the next."""

    def __init__(self) -> None:
        self._algorithm = _hash(Path(__file__).read_bytes())
        self.known: dict[str, tuple[str, list[str]]] = {}
        self.grown = False
        with suppress(OSError, ValueError):
            kept = json.loads(_KEPT.read_text(encoding="utf-8"))
            if kept["algorithm"] == self._algorithm and len(kept["known"]) < _MOST_KEPT:
                self.known = kept["known"]

    def write(self) -> None:
        """Keep what was learnt since."""
        if not self.grown:
            return
        self.grown = False
        part = _KEPT.with_name(f".{_KEPT.name}.{os.getpid()}.part")
        with suppress(OSError):
            part.write_text(json.dumps({"algorithm": self._algorithm, "known": self.known}), encoding="utf-8")
            part.replace(_KEPT)


@functools.cache
def _kept() -> _Kept:
    return _Kept()
