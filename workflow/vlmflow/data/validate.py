"""The data stage: annotation files and pictures in, checked records in three splits and a report out."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from vlmflow.data.ahead import read_ahead
from vlmflow.data.annotations import Annotations
from vlmflow.data.cache import PictureCache
from vlmflow.data.draw import draw_boxes
from vlmflow.data.formats.draft import Draft
from vlmflow.data.images import CHECKS, ImageFacts, look_at
from vlmflow.data.join import Joiner, Pictures
from vlmflow.data.paths import suggestion
from vlmflow.data.pictures import used_pictures, write_pictures
from vlmflow.data.policy import apply_policy
from vlmflow.data.records import Record, encode_record
from vlmflow.data.report import summarize, write_problems, write_report
from vlmflow.data.split import SPLITS, Splitter
from vlmflow.data.videos import VideoFacts, check_videos
from vlmflow.errors import Problem, UserError
from vlmflow.files import staged_directory, write_manifest

_log = logging.getLogger(__name__)
_BUFFER = 1 << 20  # bytes
_DRAWN = 12  # records whose boxes the report shows

LookAt = Callable[[list[str]], Pictures]


def validate_dataset(config: dict[str, Any], root: Path, generated: list[Path], cache: Path, output: Path) -> None:
    """Check every record, picture and video below ``root`` and write the splits beside ``output``, their manifest.

    ``config`` is the data set's node of the configuration with its defaults; ``generated`` the manifest of annotations
    that a model wrote, if one did; ``cache`` keeps what is known of pictures from one run to the next. Writes
    train.jsonl, validation.jsonl, test.jsonl, pictures.jsonl, report.json and report.md. Raises :class:`UserError`,
    after logging every problem and listing all in problems.md, when records are unusable and the policy does not allow
    for it, or nothing is left to train on.
    """
    if generated:
        files = [generated[0].parent / "annotations.json"]
    else:
        names = [config["annotations"]] if isinstance(config["annotations"], str) else config["annotations"]
        files = [_inside(root, name) for name in names]
        if len({file.resolve() for file in files}) < len(files):
            raise UserError("an annotation file is named twice", "use `repeat` to see records more often", file=root)
    folder = _inside(root, config["images"])
    with PictureCache(cache, CHECKS) as known:
        pictures = functools.partial(look_at, folder, max_pixels=config["max_pixels"], known=known)
        write_dataset(config, files, folder, pictures, output)


def write_dataset(config: dict[str, Any], files: list[Path], folder: Path, pictures: LookAt, output: Path) -> None:
    """:func:`validate_dataset` with the annotation files and with ``pictures``, which looks at pictures, given."""
    annotations = Annotations(files, config["format"], config["placeholder"], config["duplicate_ids"], config["limit"])
    with staged_directory(output.parent) as directory:
        joined = _Joined(config, annotations, folder)
        with (directory / "records").open("wb", _BUFFER) as stream:
            for drafts in read_ahead(annotations):
                joined.looked.update(pictures(_new(joined.looked, (draft.images for draft in drafts))))
                joined.seen.update(check_videos(folder, _new(joined.seen, (draft.videos for draft in drafts))))
                stream.writelines(joined.lines(drafts))
        splits = joined.splits()
        counts = {split: splits.count(split) for split in SPLITS}
        used = write_pictures(
            directory / "pictures.jsonl", used_pictures(_recorded(folder), joined.looked, joined.splitter)
        )
        media = {"images": used.sizes(), "videos": len(joined.seen), "records with boxes": joined.with_boxes}
        problems = [*annotations.problems, *joined.problems]
        report = summarize(annotations.counts, counts, problems, media, used.alike())
        try:
            apply_policy(config, annotations.counts.read, counts, problems, output.parent)
        except UserError:
            write_problems(output.parent, report)
            raise
        _distribute(directory, splits)
        if joined.boxed:
            draw_boxes(joined.boxed, directory / "boxes.jpg")
        write_report(directory, report)
        write_manifest(directory, records=counts)
    if "split" in annotations.counts.ignored:
        _log.warning(
            "the key 'split' of the records is not read: pictures are held out by their content (docs/data.md)"
        )
    told = ", ".join(f"{count} {split}" for split, count in counts.items())
    _log.info("%d of %d records: %s", len(splits), annotations.counts.read, told)


class _Joined:
    """What is known of a data set while its drafts become records."""

    def __init__(self, config: dict[str, Any], annotations: Annotations, folder: Path) -> None:
        self.looked: dict[str, ImageFacts | Problem] = {}
        self.seen: dict[str, VideoFacts | Problem] = {}
        self.splitter = Splitter(config["split"], config["split"]["seed"])
        self.problems: list[Problem] = []
        self.boxed: list[Record] = []
        self.with_boxes = 0
        self._contents: list[bytes] = []  # one of each record
        paths = [part.path for part in annotations.parts]
        self._joiner = Joiner(_recorded(folder), self.looked, self.seen, config["box_scale"], paths)

    def lines(self, drafts: list[Draft]) -> Iterator[bytes]:
        """The lines of the drafts that are usable; the problems of the others are noted."""
        for draft in drafts:
            record = self._joiner.join(draft)
            if not isinstance(record, Record):
                self.problems += record
                continue
            contents = self._joiner.contents(draft)
            self.splitter.tie(contents)
            self._contents.append(contents[0])
            if record.boxes:
                self.with_boxes += 1
                self.boxed += [record] if len(self.boxed) < _DRAWN else []
            yield encode_record(record)

    def splits(self) -> list[str]:
        """The split of each record; final once all drafts were joined."""
        return [self.splitter.split(content) for content in self._contents]


def _new(known: Mapping[str, object], named: Iterable[list[str]]) -> list[str]:
    """Names that are not known yet, each once."""
    return list(dict.fromkeys(name for names in named for name in names if name not in known))


def _distribute(directory: Path, splits: list[str]) -> None:
    """Copy the lines of ``records`` into the files of their splits."""
    streams: dict[str, BinaryIO] = {split: (directory / f"{split}.jsonl").open("wb", _BUFFER) for split in SPLITS}
    with (directory / "records").open("rb", _BUFFER) as records:
        for split, line in zip(splits, records, strict=True):
            streams[split].write(line)
    for stream in streams.values():
        stream.close()
    (directory / "records").unlink()


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


def _recorded(folder: Path) -> Path:
    """The folder as records name it: relative to the working directory if it lies inside, else absolute."""
    if not folder.is_absolute() and ".." not in folder.parts:
        return folder
    resolved = folder.resolve()
    return resolved.relative_to(Path.cwd()) if resolved.is_relative_to(Path.cwd()) else resolved
