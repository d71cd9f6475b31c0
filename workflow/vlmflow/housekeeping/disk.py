"""`snakemake disk`: how large everything in the results is, what could go, and how. It deletes nothing."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vlmflow.files import MANIFEST, read_json
from vlmflow.housekeeping.checkpoints import finished
from vlmflow.housekeeping.sizes import bytes_as_text, size_of

_UNNAMED = "not in this configuration"
_NO_TOWER = "no model of this configuration has this vision tower"
_FINISHED = "finished: snakemake clean_checkpoints"
_SPARE = "made again when needed: finetunes.NAME.merge.keep: false"
_STAND_IN = ".weights"
"""Suffix of the empty file that stands for merged weights in rules."""
_TRAININGS = ("pretrain", "finetune")


@dataclass(frozen=True)
class Item:
    """A folder or file of a stage; ``note`` says why it could go, empty if it could not."""

    stage: str
    name: str
    path: Path
    size: int
    note: str

    @property
    def by_hand(self) -> bool:
        """Whether only its owner can tell that it may go."""
        return self.note in (_UNNAMED, _NO_TOWER)


def print_disk(results: Path, folders: Path) -> None:
    """Print a table of what is below ``results``; ``folders``: file with stage -> names that the configuration has."""
    if not results.is_dir():
        sys.stdout.write(f"{results}: nothing is there yet\n")
        return
    sys.stdout.write(render(list(survey(results, read_json(folders))), shutil.disk_usage(results).free))


def survey(results: Path, folders: dict[str, list[str]]) -> Iterator[Item]:
    """Everything that stages wrote, in their order. A file that has several names counts where it comes first."""
    seen: set[tuple[int, int]] = set()
    runs = _runs(folders)

    def item(stage: str, path: Path, note: str) -> Item:
        return Item(stage, path.name, path, size_of(path, seen), note)

    for stage, names in folders.items():
        for path in _entries(results / stage):
            if path.stem not in names:  # files are there too: all.tsv, NAME.weights
                yield item(stage, path, _UNNAMED)
            elif path.suffix != _STAND_IN:
                if stage == "evaluate":
                    yield from (item(f"{stage}/{path.name}", run, _UNNAMED) for run in _others(path, runs))
                yield item(stage, path, _spare(results, path.name) if stage == "merged" else "")
    for stage in _TRAININGS:
        for path in _entries(results / "checkpoints" / stage):
            named = path.name in folders[stage]
            note = _FINISHED if finished(results, stage, path.name) else ""
            yield item(f"checkpoints/{stage}", path, note or ("" if named else _UNNAMED))
    yield from _caches(results, folders, item)
    for stage in ("logs", "benchmarks", "plan", "leakage"):
        if (results / stage).is_dir():
            yield item(".", results / stage, "")


def _caches(results: Path, folders: dict[str, list[str]], item: Callable[[str, Path, str], Item]) -> Iterator[Item]:
    features = _entries(results / "cache" / "features")
    if features:
        from vlmflow.housekeeping.towers import folders_in_use  # imports torch

        used = folders_in_use(results, folders)
        for path in features:
            note = "" if used is None or path.name in used else _NO_TOWER
            yield item("cache/features", path, note)
    for path in _entries(results / "cache" / "pictures"):
        yield item("cache/pictures", path, "" if path.stem in folders["data"] else _UNNAMED)
    for name in ("generated", "answers", "judged"):
        if (results / "cache" / name).is_dir():
            yield item("cache", results / "cache" / name, "")


def _runs(folders: dict[str, list[str]]) -> set[str]:
    """Folders of an evaluation: one per checkpoint and way of asking."""
    stages = {"model": "models", "pretrain": "pretrain", "adapter": "finetune", "merged": "merged",
              "converted": "converted"}  # fmt: skip
    checkpoints = [f"{kind}-{name}" for kind, stage in stages.items() for name in folders[stage]]
    return {f"{checkpoint}{way}" for checkpoint in checkpoints for way in ("", "+blind", "+blank")}


def _others(folder: Path, names: set[str]) -> list[Path]:
    """Folders in ``folder`` that have other names than ``names``."""
    return [path for path in _entries(folder) if path.is_dir() and path.name not in names]


def _spare(results: Path, name: str) -> str:
    made = (results / "converted" / name / MANIFEST).is_file()
    weights = any((results / "merged" / name).glob("*.safetensors"))
    return _SPARE if made and weights else ""


def _entries(folder: Path) -> list[Path]:
    """What is in a folder, hidden things (unfinished work) left out."""
    return sorted(path for path in folder.iterdir() if path.name[0] != ".") if folder.is_dir() else []


def render(items: list[Item], free: int) -> str:
    """The table, sums, and the commands that delete what the configuration does not name."""
    rows = [(item.stage, item.name, bytes_as_text(item.size), item.note) for item in items]
    table = [("stage", "name", "size", "can go"), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(3)]
    lines = [
        f"{stage:{widths[0]}}  {name:{widths[1]}}  {size:>{widths[2]}}  {note}".rstrip()
        for stage, name, size, note in table
    ]
    total, spare = sum(item.size for item in items), sum(item.size for item in items if item.note)
    lines += [
        "",
        f"{bytes_as_text(total)} in all, of which {bytes_as_text(spare)} can go; {bytes_as_text(free)} are free",
    ]
    unnamed = [shlex.quote(str(item.path)) for item in items if item.by_hand]
    if unnamed:
        lines += ["", "Unless another configuration file has use for them:", *(f"  rm -r {path}" for path in unnamed)]
    return "\n".join([*lines, ""])
