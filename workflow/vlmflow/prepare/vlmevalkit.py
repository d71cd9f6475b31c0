"""Tasks of VLMEvalKit: a TSV with pictures as base64 (or by name) becomes pictures and annotations."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image as Pictures

from vlmflow.data.images import check_image
from vlmflow.data.paths import locate
from vlmflow.data.report import shown
from vlmflow.errors import Problem, UserError
from vlmflow.field import tasks
from vlmflow.field.cells import as_list, as_text
from vlmflow.field.tables import iterate_rows
from vlmflow.files import read_manifest, staged_directory, write_json, write_manifest

_SUFFIXES = {
    "JPEG": ".jpg",
    "MPO": ".jpg",
    "PNG": ".png",
    "WEBP": ".webp",
    "BMP": ".bmp",
    "GIF": ".gif",
    "TIFF": ".tif",
}
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # as data/images.py: no PostScript
_REFERENCE = 64  # characters: a shorter cell is no picture but the index of the row that has it
_LISTED = 20  # problems in the message
_DAMAGED = "the file is damaged or no task of VLMEvalKit: fetch it again"
_log = logging.getLogger(__name__)


class _UnusableError(Exception):
    """Field, reason and advice."""


def prepare_vlmevalkit(source: Path, output: Path) -> None:
    """Write ``NAME.json`` (schemas/llava.schema.yaml) for each ``NAME.tsv``, and ``images``, beside ``output``.

    Pictures keep their bytes; VLMEvalKit writes them anew as JPEG. The index of a row is the record's id. Rows without
    a picture are left out, as there. Raises one :class:`UserError` that lists every row that cannot be used.
    """
    names = sorted(name for name in read_manifest(source)["files"] if name.endswith(".tsv"))
    if not names:
        raise UserError("no .tsv file", "let the source name a file of VLMEvalKit", file=source.parent)
    with staged_directory(output.parent, source) as directory:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow on odd metadata; what matters here is a problem, not a warning
            for name in names:
                table = _Table(source.parent, name, directory)
                write_json(directory / Path(name).with_suffix(".json"), table.records())
        write_manifest(directory, prepared="vlmevalkit")


class _Table:
    """One TSV file ``name`` below ``root``; its pictures go to ``directory``."""

    def __init__(self, root: Path, name: str, directory: Path) -> None:
        self._root, self._path, self._directory = root, root / name, directory
        self._pictures: dict[str, list[str]] = {}  # index -> names
        self._problems: list[Problem] = []

    def records(self) -> list[dict[str, Any]]:
        """One record for every row that has a picture."""
        kept, left_out = [], 0
        for number, row in enumerate(self._rows(), 1):
            index = as_text(row["index"])
            try:
                pictures = self._own_pictures(row)
                if index in self._pictures:
                    raise _UnusableError("index", f"index {shown(index)} stands twice", "each row needs its own")
            except _UnusableError as error:
                self._report(number, index, error)
            else:
                self._pictures[index] = pictures if isinstance(pictures, list) else []
                left_out += pictures == []
                if pictures:
                    row.pop("image", None)  # decoded
                    kept.append((number, index, row, pictures))
        records = [record for entry in kept if (record := self._record(*entry))]
        if self._problems:
            raise _summary(self._path, self._problems)
        if left_out:
            _log.info("%s: %d rows without a picture are left out, as VLMEvalKit does", self._path.name, left_out)
        return records

    def _rows(self) -> Iterator[dict[str, Any]]:
        for number, row in enumerate(iterate_rows(self._path)):
            lowered = {name if len(name) == 1 else name.lower(): cell for name, cell in row.items()}
            missing = [name for name in ("index", "question", "answer") if name not in lowered]
            if not number and (missing or not {"image", "image_path"} & lowered.keys()):
                reason = f"no column {', '.join(missing) or 'image or image_path'}"
                advice = "name a task of VLMEvalKit; the answers of test sets are kept secret: take the DEV or VAL file"
                raise UserError(reason, advice, file=self._path)
            yield lowered

    def _own_pictures(self, row: dict[str, Any]) -> list[str] | str:
        """Names of a row's pictures, or the index of the row that has them."""
        cell = as_text(row.get("image"))
        if 0 < len(cell) <= _REFERENCE and not cell.startswith("["):
            return cell
        if cell:
            return [self._keep(_decoded(text), "image") for text in as_list(cell)]
        return [self._keep(self._file(name), "image_path") for name in as_list(row.get("image_path"))]

    def _file(self, name: str) -> bytes:
        relative = (self._path.parent / name).relative_to(self._root) if not Path(name).is_absolute() else Path(name)
        path = locate(self._root, str(relative), "picture")
        if isinstance(path, Problem):
            raise _UnusableError("image_path", path.reason, path.advice)
        return path.read_bytes()

    def _keep(self, content: bytes, field: str) -> str:
        """Store a picture under a name made of its content; equal ones are one file."""
        name = f"images/{hashlib.sha256(content).hexdigest()[:24]}{_suffix(content, field)}"
        path = self._directory / name
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
            checked = check_image(self._directory, name)
            if isinstance(checked, Problem):
                path.unlink()
                raise _UnusableError(field, checked.reason, _DAMAGED)
        return name

    def _record(self, number: int, index: str, row: dict[str, Any], pictures: list[str] | str) -> dict[str, Any] | None:
        try:
            return _as_record(index, row, pictures if isinstance(pictures, list) else self._of_row(pictures))
        except _UnusableError as error:
            self._report(number, index, error)
            return None

    def _of_row(self, index: str) -> list[str]:
        if not self._pictures.get(index):
            reason = f"neither a picture nor the index of a row with one: {shown(index)}"
            raise _UnusableError("image", reason, _DAMAGED)
        return self._pictures[index]

    def _report(self, number: int, index: str, error: _UnusableError) -> None:
        field, reason, advice = error.args
        place = {"file": str(self._path), "record": f"row {number} (index {shown(index, 40)})", "field": field}
        self._problems.append(Problem(reason, advice, **place))


def _suffix(content: bytes, field: str) -> str:
    """The ending that a picture's format asks for."""
    try:
        with Pictures.open(io.BytesIO(content), formats=_FORMATS) as picture:
            return _SUFFIXES[str(picture.format)]
    except Exception as error:  # a hostile file can make a decoder raise anything
        bomb = isinstance(error, Pictures.DecompressionBombError)
        raise _UnusableError(field, f"too many pixels: {error}" if bomb else "not a picture", _DAMAGED) from None


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.rpartition("base64,")[2].split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise _UnusableError("image", f"not base64: {error}", _DAMAGED) from None


def _as_record(index: str, row: dict[str, Any], pictures: list[str]) -> dict[str, Any]:
    answers = tasks.accepted(row)
    if not answers:
        advice = "the answers of test sets are kept secret: take the DEV or VAL file"
        raise _UnusableError("answer", "no answer", advice)
    try:
        text, images = tasks.placed(tasks.question(row), pictures)
    except IndexError as error:
        raise _UnusableError("question", f"no such picture: {error}", _DAMAGED) from None
    turns = [{"from": "human", "value": text}, {"from": "gpt", "value": answers[0]}]
    record = {"id": index, "image": images, "category": tasks.category(row), "conversations": turns}
    return {**record, "answers": answers[1:]} if answers[1:] else record


def _summary(path: Path, problems: list[Problem]) -> UserError:
    lines = [str(problem).replace("\n", "\n  ") for problem in problems[:_LISTED]]
    lines += [f"... and {len(problems) - _LISTED} more"] if len(problems) > _LISTED else []
    return UserError(f"{len(problems)} rows cannot be used:\n  " + "\n  ".join(lines), file=path)
