"""Drafts and what their pictures and videos are, joined into records."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from vlmflow.data.boxes import parse, substitute, wrong_box
from vlmflow.data.formats.draft import Draft
from vlmflow.data.images import ImageFacts
from vlmflow.data.records import Box, Image, Record, Turn, Video
from vlmflow.data.report import shown
from vlmflow.data.videos import VideoFacts
from vlmflow.errors import Problem

Pictures = Mapping[str, ImageFacts | Problem]
Videos = Mapping[str, VideoFacts | Problem]


class Joiner:
    """Makes records of drafts; ``folder`` is the images folder as records name it, ``scale`` that of written boxes."""

    def __init__(self, folder: Path, pictures: Pictures, videos: Videos, scale: str, files: Sequence[Path]) -> None:
        self._folder = folder.as_posix()
        self._pictures, self._videos, self._scale, self._files = pictures, videos, scale, files

    def join(self, draft: Draft) -> Record | list[Problem]:
        """The record, or everything that is wrong with its pictures, videos and boxes."""
        images, videos = [], []
        problems: list[Problem] = []
        for name in draft.images:
            picture = self._pictures[name]
            if isinstance(picture, Problem):
                problems.append(self._located(draft, picture, "image"))
            else:
                images.append(Image(self._path(name), picture.width, picture.height, picture.sha256.hex()))
        for name in draft.videos:
            video = self._videos[name]
            if isinstance(video, Problem):
                problems.append(self._located(draft, video, "video"))
            else:
                size = video.width, video.height
                videos.append(Video(self._path(name), video.frames, video.duration, *size, video.sha256.hex()))
        sizes = [(image.width, image.height) for image in images]
        if not problems and draft.boxes:
            wrong = [finding for box in draft.boxes for finding in wrong_box(box, sizes, self._scale)]
            problems = [self._located(draft, Problem(why, advice), "objects") for why, advice in wrong]
        if problems:
            return list(dict.fromkeys(problems))
        turns, boxes = draft.turns, draft.boxes
        if draft.refs or boxes:
            texts = substitute([turn.text for turn in turns], draft.refs, boxes, sizes, self._scale)
            turns = [Turn(turn.role, text) for turn, text in zip(turns, texts, strict=True)]
        elif len(images) == 1:
            boxes = _written_boxes(turns)
        return Record(
            id=draft.id or "",
            images=tuple(images),
            turns=tuple(turns),
            category=draft.category,
            videos=tuple(videos),
            boxes=tuple(boxes),
            repeat=draft.repeat,
            answers=tuple(draft.answers),
        )

    def contents(self, draft: Draft) -> list[bytes]:
        """What ties a usable draft to a split: its pictures' and videos' content, or its text if it has neither."""
        pictures = [self._pictures[name] for name in draft.images]
        videos = [self._videos[name] for name in draft.videos]
        found = [picture.pixels for picture in pictures if isinstance(picture, ImageFacts)]
        found += [video.sha256 for video in videos if isinstance(video, VideoFacts)]
        return found or [hashlib.sha256("\0".join(turn.text for turn in draft.turns).encode()).digest()]

    def _path(self, name: str) -> str:
        return name if self._folder == "." else f"{self._folder}/{name}"

    def _located(self, draft: Draft, problem: Problem, field: str) -> Problem:
        label = f"{shown(draft.id)} ({draft.position})"
        return dataclasses.replace(problem, file=self._files[draft.file], record=label, field=field)


def _written_boxes(turns: Sequence[Turn]) -> list[Box]:
    """The boxes that stand in the text already, about the only picture."""
    return [Box(0, "norm_1000", bbox, ref) for turn in turns if "<box>" in turn.text for ref, bbox in parse(turn.text)]
