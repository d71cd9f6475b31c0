"""A hash of the code that a stage runs, so that an edit re-runs the stages which use it and no others."""

from __future__ import annotations

import ast
import functools
import hashlib
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).resolve().parent


@functools.cache
def fingerprint(script: Path) -> str:
    """Hash of ``script`` and of every module of this package that it imports, directly or not.

    Comments, docstrings and layout do not count. A data file beside a module and named after it (``render.html.j2``
    beside ``render.py``) counts as part of the module.
    """
    seen: dict[Path, str] = {}
    waiting = [script]
    while waiting:
        path = waiting.pop()
        if path not in seen:
            tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
            seen[path] = ast.unparse(_without_docstrings(tree))
            waiting += _imported(tree)
            waiting += [] if path == script else _packages_above(path)
    digest = hashlib.sha256()
    for path in sorted(seen):
        digest.update(f"{path.name}\0{seen[path]}\0".encode())
        if path != script:
            for data in sorted(path.parent.glob(f"{path.stem}.*")):
                digest.update(data.read_bytes() if data.suffix != ".py" else b"")
    return digest.hexdigest()[:16]


def _packages_above(path: Path) -> list[Path]:
    folders = [folder for folder in path.parents if folder == _PACKAGE or _PACKAGE in folder.parents]
    return [init for folder in folders if (init := folder / "__init__.py").is_file()]


def _imported(tree: ast.AST) -> list[Path]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return [path for name in sorted(names) if (path := _module_file(name)) is not None]


def _module_file(name: str) -> Path | None:
    """The file of a module of this package, or None for anything else (other packages, names inside a module)."""
    first, *rest = name.split(".")
    if first != _PACKAGE.name:
        return None
    stem = _PACKAGE.joinpath(*rest)
    return next((path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()), None)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        body: Any = getattr(node, "body", None)
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and body
        if documented and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            body[0] = ast.Pass()
    return tree
