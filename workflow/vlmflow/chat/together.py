"""Several models answer the same question, one after the other or at once."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from vlmflow.chat.answerer import Answerer
from vlmflow.chat.conversation import Message, Settings
from vlmflow.errors import UserError

ENDED = ("done", "cut", "stopped", "failed")
"""States of a model that says no more."""


@dataclass(frozen=True)
class Progress:
    """How far a model is; ``seconds`` since it was asked. ``state`` is queued, waiting, thinking or one of ENDED."""

    text: str = ""
    state: str = "waiting"
    seconds: float = 0.0


def answer_together(
    models: Sequence[Answerer], messages: Sequence[Message], settings: Settings, at_once: bool, stop: threading.Event
) -> Iterator[list[Progress]]:
    """How far each model is, whenever one has got further. ``stop`` ends all answers where they are."""
    told: queue.Queue[tuple[int, Progress]] = queue.Queue()
    progress = [Progress() for _ in models]
    with ThreadPoolExecutor(len(models) if at_once else 1) as pool:
        try:
            for index, model in enumerate(models):
                pool.submit(_answer, index, model, messages, settings, stop, told)
            running = len(models)
            while running:
                index, progress[index] = told.get()
                running -= progress[index].state in ENDED
                yield list(progress)
        finally:
            stop.set()


def _answer(
    index: int,
    model: Answerer,
    messages: Sequence[Message],
    settings: Settings,
    stop: threading.Event,
    told: queue.Queue[tuple[int, Progress]],
) -> None:
    started, text, cut, stopped = time.monotonic(), "", False, False

    def tell(state: str, text: str) -> None:
        told.put((index, Progress(text, state, time.monotonic() - started)))

    if stop.is_set():
        tell("stopped", "")
        return
    tell("thinking", "")
    try:
        replies: Any = model.stream(messages, settings)
        with closing(replies):
            for reply in replies:
                text, cut = reply.text, reply.cut
                if stopped := stop.is_set():
                    break
                tell("thinking", text)
        tell("stopped" if stopped else "cut" if cut else "done", text)
    except UserError as error:
        tell("failed", f"error: {error}")
    except Exception as error:
        tell("failed", f"error: {type(error).__name__}: {error}")
        raise
