"""Annotation files as drafts of records: every check that needs no picture."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from vlmflow.data.formats import FORMATS, detect
from vlmflow.data.formats.draft import IMAGE, VIDEO, Draft, Format, UnusableError
from vlmflow.data.meta import read_meta
from vlmflow.data.raw import Finding, Raw
from vlmflow.data.report import shown
from vlmflow.data.rules import place, wrong_content
from vlmflow.data.shape import has_shape, known_keys, wrong_shape
from vlmflow.data.stream import read_raw
from vlmflow.errors import Problem, UserError


class Part(NamedTuple):
    """An annotation file, the folder within the data set's ``images`` that its names start from, and its repeat."""

    path: Path
    folder: str = ""
    repeat: float = 1.0


@dataclass
class Counts:
    """What was read, and what was done to it."""

    read: int = 0
    repaired: Counter[str] = field(default_factory=Counter)
    placed: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)


class Annotations:
    """The drafts of annotation files, one after the other; iterate once, then look at ``counts`` and ``problems``.

    ``form`` is a key of FORMATS or auto; ``placeholder`` (first, last, error) says which question of a record without
    placeholders gets them; ``duplicate_ids`` is suffix or error; ``limit`` reads only the first records. A problem
    without a record concerns a whole file.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        form: str,
        placeholder: str,
        duplicate_ids: str = "suffix",
        limit: int | None = None,
    ) -> None:
        self.counts = Counts()
        self.problems: list[Problem] = []
        self._name = form
        self._form = None if form == "auto" else FORMATS[form]
        self._placeholder, self._duplicate_ids, self._limit = placeholder, duplicate_ids, limit
        self._suffixes: dict[str, int] = {}
        self.parts = [part for path in paths for part in self._parts(path, form)]

    def _parts(self, path: Path, form: str) -> list[Part]:
        try:
            entries = read_meta(path, required=form == "internvl-meta")
        except UserError as error:
            self.problems.append(error.problem)
            return []
        return [Part(path)] if entries is None else [Part(*entry) for entry in entries]

    def __iter__(self) -> Iterator[Draft]:
        for index, part in enumerate(self.parts):
            try:
                for raw in read_raw(part.path, self._name):
                    if self._limit is not None and self.counts.read >= self._limit:
                        return
                    self.counts.read += 1
                    draft = self._draft(part, raw)
                    if draft is not None:
                        draft.file = index
                        yield draft
            except UserError as error:
                self.problems.append(error.problem)
            except (OSError, EOFError, zlib.error) as error:
                self.problems.append(Problem(f"not readable: {error}", "make or copy the file again", part.path))

    def _draft(self, part: Part, raw: Raw) -> Draft | None:
        """One record as a draft; None, with its problems noted, when it cannot be used."""
        form = self._form or detect(raw.value)
        value = raw.value
        repaired = []
        if isinstance(value, dict) and "conversation" in value and "conversations" not in value:
            value["conversations"] = value.pop("conversation")
            repaired.append("key 'conversation'")
        draft, findings = None, [raw.broken] if raw.broken else []
        if not findings and not has_shape(form.schema, value):
            findings = wrong_shape(form.schema, value)
        if not findings:
            draft, findings = self._read(form, value)
        if findings or draft is None:
            name = value.get("id") if isinstance(value, dict) else None
            label = raw.position if name in (None, "") else f"{shown(name)} ({raw.position})"
            self.problems += [Problem(why, advice, part.path, label, at or None) for why, advice, at in findings]
            return None
        return self._named(draft, part, raw, repaired, form, value)

    def _read(self, form: Format, value: dict[str, Any]) -> tuple[Draft | None, list[Finding]]:
        try:
            draft = form.draft(value)
        except UnusableError as unusable:
            return None, [unusable.finding]
        findings = wrong_content(draft, form, value, self._placeholder)
        if not findings:
            for tag, files in ((VIDEO, draft.videos), (IMAGE, draft.images)):
                if files and not any(tag in turn.text for turn in draft.turns):
                    place(draft, tag, len(files), self._placeholder)
                    self.counts.placed[f"{tag} before the {self._placeholder} question"] += 1
        return draft, findings

    def _named(
        self, draft: Draft, part: Part, raw: Raw, repaired: list[str], form: Format, value: dict[str, Any]
    ) -> Draft | None:
        """The draft with an id of its own; None when a repeated one is refused."""
        wanted = draft.id or f"{part.path.name.removesuffix('.gz').rsplit('.', 1)[0]}-{raw.number}"
        draft.id = self._unique(wanted)
        draft.position = raw.position
        draft.repeat = part.repeat
        if part.folder:
            draft.images = [f"{part.folder}/{name}" for name in draft.images]
            draft.videos = [f"{part.folder}/{name}" for name in draft.videos]
        if draft.id != wanted:
            if self._duplicate_ids == "error":
                advice = "give each record an id of its own, or leave `duplicate_ids: suffix`"
                label = f"{shown(wanted)} ({raw.position})"
                self.problems.append(Problem(f"duplicate id: '{shown(wanted)}'", advice, part.path, label, "id"))
                return None
            repaired.append("duplicate id")
        self.counts.repaired.update(repaired)
        if unread := value.keys() - known_keys(form.schema):
            self.counts.ignored.update(map(shown, unread))
        return draft

    def _unique(self, name: str) -> str:
        """``name``, or with the first free suffix -2, -3, ... when it is taken."""
        number = self._suffixes.get(name)
        if number is None:
            self._suffixes[name] = 1
            return name
        unique = name
        while unique in self._suffixes:
            number += 1
            unique = f"{name}-{number}"
        self._suffixes[name] = number
        self._suffixes[unique] = 1
        return unique
