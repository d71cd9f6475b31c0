"""InternVL's meta file: several annotation files, each with a picture folder and a repeat (its fine-tuning guide)."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from vlmflow.data.raw import Finding
from vlmflow.data.shape import has_shape, wrong_shape
from vlmflow.data.stream import Decoder
from vlmflow.errors import UserError

_LARGEST = 10_000_000  # bytes; a meta file has a few lines, a larger file is data


def read_meta(path: Path, required: bool = False) -> list[tuple[Path, str, float]] | None:
    """(annotation file, picture folder, repeat) of each entry; None when ``path`` is no meta file.

    ``annotation`` is relative to the meta file, ``root`` to the data set's ``images``. With ``required`` a file of
    another kind is a :class:`UserError`, as is an entry that lacks something.
    """
    value, broken = _object(path)
    if not required and not (value and all(isinstance(v, dict) and "annotation" in v for v in value.values())):
        return None
    if broken:
        raise UserError(broken[0], broken[1], file=path)
    if value is None or not has_shape("internvl-meta", value):
        findings = wrong_shape("internvl-meta", value) if value is not None else []
        reason, advice, where = findings[0] if findings else ("no meta file: not one JSON object", "", "")
        raise UserError(
            reason, advice or "see workflow/schemas/internvl-meta.schema.yaml", file=path, field=where or None
        )
    return [
        (_inside(path, name, entry["annotation"]), _folder(path, name, entry), entry.get("repeat_time", 1))
        for name, entry in value.items()
    ]


def _object(path: Path) -> tuple[dict[str, Any] | None, Finding | None]:
    """The object in a file, and what JSON forbids in it."""
    if not (path.name.endswith(".json") and path.is_file()) or path.stat().st_size > _LARGEST:
        return None, None
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
        value, end, broken = Decoder().decode(text, 0)
    except (ValueError, RecursionError, OSError):
        return None, None  # whoever reads it as data says what is wrong
    return (value, broken) if isinstance(value, dict) and end == len(text) else (None, None)


def _inside(path: Path, name: str, annotation: str) -> Path:
    file = path.parent / annotation
    if PurePosixPath(annotation).is_absolute() or ".." in PurePosixPath(annotation).parts:
        raise UserError(
            f"lies outside the folder of the meta file: {annotation}",
            "move it there",
            file=path,
            field=f"{name}.annotation",
        )
    if not file.is_file():
        raise UserError("no such file", "annotation files are named relative to the meta file", file=file, field=name)
    return file


def _folder(path: Path, name: str, entry: dict[str, Any]) -> str:
    folder = PurePosixPath(entry.get("root", "."))
    if folder.is_absolute() or ".." in folder.parts:
        advice = "name it relative to the data set's `images` folder, without '..'"
        raise UserError(f"picture folder outside: {folder}", advice, file=path, field=f"{name}.root")
    return "" if str(folder) == "." else str(folder)
