"""What was said, and the pictures that it was said about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from vlmflow.data.records import Turn
from vlmflow.errors import UserError

PLACEHOLDER = "<image>"


@dataclass(frozen=True)
class Message:
    """One utterance; its text has a placeholder for each of its pictures (RGB, upright)."""

    role: Literal["system", "user", "assistant"]
    text: str
    pictures: tuple[Image.Image, ...] = ()


@dataclass(frozen=True)
class Video:
    """Frames of a video, in order."""

    frames: tuple[Image.Image, ...]


@dataclass(frozen=True)
class Settings:
    """How an answer is made: greedily at temperature 0, else drawn with ``seed`` from the likeliest ``top_p``."""

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Reply:
    """An answer so far; ``cut`` if it stopped at the limit of tokens."""

    text: str
    cut: bool = False


def question(text: str, attached: Sequence[Image.Image | Video] = ()) -> Message:
    """A user's turn: what is attached comes first, each picture on a line of its own, where the text has no places.

    Frames of a video are ``Frame1: <image>`` and so on, as InternVL was trained with. Raises :class:`UserError` if the
    text has places and not as many as there are pictures.
    """
    pictures = [picture for one in attached for picture in (one.frames if isinstance(one, Video) else (one,))]
    places = text.count(PLACEHOLDER)
    if places and places != len(pictures):
        raise UserError(
            f"{places} {PLACEHOLDER} in the text for {len(pictures)} picture(s)",
            "write one for each picture, or none: pictures then come first",
        )
    return Message("user", text if places else _lines(attached) + text, tuple(pictures))


def _lines(attached: Sequence[Image.Image | Video]) -> str:
    lines: list[str] = []
    for one in attached:
        if isinstance(one, Video):
            lines += [f"Frame{number}: {PLACEHOLDER}\n" for number in range(1, len(one.frames) + 1)]
        else:
            lines.append(f"{PLACEHOLDER}\n")
    return "".join(lines)


def turns(messages: Sequence[Message]) -> list[Turn]:
    """The conversation as the prompt template takes it."""
    return [Turn(message.role, message.text) for message in messages]


def pictures(messages: Sequence[Message]) -> list[Image.Image]:
    """All pictures of a conversation, in order."""
    return [picture for message in messages for picture in message.pictures]
