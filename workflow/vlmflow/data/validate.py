"""The data stage: annotation files and pictures in, checked records in three splits and a report out."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from pathlib import Path
from typing import Any

from vlmflow.data.formats import Annotations, Draft, read_annotations
from vlmflow.data.images import ImageFacts, check_images, suggestion
from vlmflow.data.records import Image, Record, write_records
from vlmflow.data.report import render, summarize
from vlmflow.data.split import SPLITS, assign
from vlmflow.errors import Problem, UserError
from vlmflow.files import staged_directory, write_json, write_manifest, write_text

_log = logging.getLogger(__name__)
_PRINTED = 200  # problems in the log; the rest is counted

Usable = tuple[Draft, list[ImageFacts]]


def validate_dataset(config: dict[str, Any], root: Path, output: Path) -> None:
    """Check every record and picture below ``root`` and write the splits beside ``output``, their manifest.

    ``config`` is the data set's node of the configuration with its defaults. Writes train.jsonl, validation.jsonl,
    test.jsonl, report.json and report.md. Raises :class:`UserError`, after logging every problem, and writes nothing
    when records are unusable and the policy does not allow for it, or nothing is left to train on.
    """
    names = [config["annotations"]] if isinstance(config["annotations"], str) else config["annotations"]
    files, folder = [_inside(root, name) for name in names], _inside(root, config["images"])
    found = read_annotations(files, config["format"], config["placeholder"], config["limit"])
    wanted = dict.fromkeys(name for draft in found.drafts for name in draft.images)
    facts = check_images(folder, list(wanted), config["max_pixels"])
    usable, bad_pictures = _join(found.drafts, facts)
    problems = [*found.problems, *bad_pictures]
    _apply_policy(config, found.read, len(usable), problems)
    records = _split(usable, _recorded(folder), config["split"])
    counts = {split: len(records[split]) for split in SPLITS}
    if not counts["train"]:
        advice = "give more pictures, smaller shares or another seed under `split`; connected records stay together"
        raise UserError(f"no record is left to train on: {counts}", advice, file=root)
    _write(output, records, _report(found, usable, problems, counts))
    _log.info("%d of %d records: %s", len(usable), found.read, ", ".join(f"{n} {split}" for split, n in counts.items()))


def _inside(root: Path, name: str) -> Path:
    """``root / name``, which must exist; what lies outside is not watched for changes."""
    if not root.is_dir():
        raise UserError("no such folder", suggestion(root, root.parent), file=root)
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError(
            "lies outside the data set's folder", f"give a path relative to {root}, without '..'", file=name
        )
    if not (root / name).exists():
        raise UserError("no such file or folder", suggestion(root / name, root), file=root / name)
    return root / name


def _join(drafts: list[Draft], facts: dict[str, ImageFacts | Problem]) -> tuple[list[Usable], list[Problem]]:
    """The drafts whose pictures are all good, and what is wrong with the pictures of the others."""
    usable, problems = [], []
    for draft in drafts:
        checked = {name: facts[name] for name in draft.images}
        bad = [check for check in checked.values() if isinstance(check, Problem)]
        problems += [dataclasses.replace(p, file=draft.file, record=draft.label, field="image") for p in bad]
        good = [check for name in draft.images if isinstance(check := checked[name], ImageFacts)]
        if not bad:
            usable.append((draft, good))
    return usable, problems


def _apply_policy(config: dict[str, Any], read: int, usable: int, problems: list[Problem]) -> None:
    """Raise unless what is wrong may be left out; a problem of a whole file never may."""
    for problem in problems[:_PRINTED]:
        _log.error("%s", problem)
    if len(problems) > _PRINTED:
        _log.error("... and %d more problems", len(problems) - _PRINTED)
    for problem in problems:
        if problem.record is None:
            raise UserError(problem.reason, problem.advice, file=problem.file)
    dropped = read - usable
    limit = config["max_dropped"] if config["on_error"] == "drop" else 0
    if dropped > limit:
        allowed = f", {limit} may be dropped (max_dropped)" if config["on_error"] == "drop" else ""
        first = dataclasses.replace(problems[0], advice="")
        reason = f"{dropped} of {read} records cannot be used{allowed} (first: {first})"
        advice = "correct the records listed above, or leave them out with `on_error: drop` and `max_dropped`"
        raise UserError(reason, advice)
    if not usable:
        raise UserError("no records", "the annotation files hold no usable record", field="annotations")


def _recorded(folder: Path) -> Path:
    """The folder as records name it: relative to the working directory if it lies inside, else absolute."""
    if not folder.is_absolute() and ".." not in folder.parts:
        return folder
    resolved = folder.resolve()
    return resolved.relative_to(Path.cwd()) if resolved.is_relative_to(Path.cwd()) else resolved


def _split(usable: list[Usable], folder: Path, config: dict[str, Any]) -> dict[str, list[Record]]:
    keys = [[image.pixels for image in images] or [_text_hash(draft)] for draft, images in usable]
    records: dict[str, list[Record]] = {split: [] for split in SPLITS}
    for (draft, facts), split in zip(usable, assign(keys, config, config["seed"]), strict=True):
        images = tuple(Image((folder / i.path).as_posix(), i.width, i.height, i.sha256) for i in facts)
        records[split].append(Record(draft.id, images, draft.turns, draft.category))
    return records


def _text_hash(draft: Draft) -> str:
    return hashlib.sha256("\0".join(turn.text for turn in draft.turns).encode()).hexdigest()


def _report(
    found: Annotations, usable: list[Usable], problems: list[Problem], counts: dict[str, int]
) -> dict[str, Any]:
    sizes = {image.path: (image.width, image.height) for _, images in usable for image in images}
    return summarize(found.read, counts, problems, found.repaired, found.placed, found.ignored, sizes.values())


def _write(output: Path, records: dict[str, list[Record]], report: dict[str, Any]) -> None:
    with staged_directory(output.parent) as directory:
        for split, part in records.items():
            write_records(directory / f"{split}.jsonl", part)
        write_json(directory / "report.json", report)
        write_text(directory / "report.md", render(report))
        write_manifest(directory, records={split: len(part) for split, part in records.items()})
