"""A conversation in the terminal: questions, commands, answers word by word."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from PIL import Image

from vlmflow.chat.answerer import Answerer
from vlmflow.chat.conversation import Message, Settings, Video, question
from vlmflow.chat.media import open_picture, video_frames
from vlmflow.errors import UserError
from vlmflow.files import write_json

HELP = """\
/image FILE   show a picture with the next question
/video FILE   show frames of a video with the next question
/system TEXT  set the system prompt and start anew; without TEXT: none
/undo         take back the last question and its answer
/clear        start anew
/save FILE    write the conversation to a JSON file
/help         this list
/exit         leave; so does Ctrl-D. Ctrl-C stops an answer"""


_OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
"""Control characters but tab and line feed, halves of characters, and what turns the direction of all that follows."""


@dataclass
class Attached:
    """What is shown with the next question."""

    files: list[str] = field(default_factory=list)
    media: list[Image.Image | Video] = field(default_factory=list)


class Chat:
    """One conversation with ``model``; answers go to ``out``, everything else to ``notes``.

    Of videos, ``frames`` pictures are shown.
    """

    def __init__(self, model: Answerer, settings: Settings, frames: int, out: TextIO, notes: TextIO) -> None:
        self._model, self._settings, self._frames, self._out, self._notes = model, settings, frames, out, notes
        self.messages: list[Message] = []
        self._files: list[list[str]] = []  # of each message
        self._next = Attached()

    def attach_picture(self, path: Path) -> None:
        """Show a picture with the next question."""
        self._next.media.append(open_picture(path))
        self._next.files.append(str(path))

    def attach_video(self, path: Path) -> None:
        """Show frames of a video with the next question."""
        self._next.media.append(Video(tuple(video_frames(path, self._frames))))
        self._next.files.append(str(path))

    def set_system(self, text: str) -> None:
        """Start anew with another system prompt, or none."""
        self.messages = [Message("system", text)] if text else []
        self._files = [[] for _ in self.messages]

    def ask(self, text: str) -> bool:
        """Ask about what is attached and print the answer; False if Ctrl-C stopped it, which keeps what there is.

        Without an answer, or with a :class:`UserError`, nothing was said, and what is attached stays so.
        """
        if not text and not self._next.media:
            raise UserError("no question", "type one")
        asked = question(text, self._next.media)
        answer, cut, shown, stopped = "", False, 0, False
        try:
            for reply in self._model.stream([*self.messages, asked], self._settings):
                answer, cut = reply.text, reply.cut
                self._print(printable(answer)[shown:])
                shown = max(shown, len(printable(answer)))
        except KeyboardInterrupt:
            stopped = True
            self._note(" [stopped]")
        finally:
            if shown:
                self._print("\n")
        if cut:
            self._note(f"[cut at {self._settings.max_new_tokens} tokens: --max-new-tokens]")
        if answer:
            self.messages += [asked, Message("assistant", answer)]
            self._files += [self._next.files, []]
            self._next = Attached()
        elif not stopped:
            self._note("[the model says nothing]")
        return not stopped

    def run(self, lines: Iterator[str]) -> None:
        """Answer lines until they end; what is wrong with one is told, and the next may be better."""
        self._note(f"{self._model.name} is listening; /help tells the commands")
        for line in lines:
            try:
                if not self._obey(line.strip()):
                    return
            except UserError as error:
                self._note(f"error: {error}")
            except OSError as error:
                self._note(f"error: {error.filename}: {error.strerror}")

    def _obey(self, line: str) -> bool:
        """Do what a line says; False for the end."""
        name, _, rest = line.partition(" ")
        rest = rest.strip().strip("'\"")
        commands: dict[str, Callable[[], object]] = {
            "/image": lambda: self.attach_picture(_file(rest)),
            "/video": lambda: self.attach_video(_file(rest)),
            "/system": lambda: self.set_system(rest),
            "/undo": self._undo,
            "/clear": self._clear,
            "/save": lambda: self._save(_file(rest)),
            "/help": lambda: self._note(HELP),
        }
        if name in ("/exit", "/quit"):
            return False
        if name in commands:
            commands[name]()
            if name in ("/image", "/video"):
                self._note(f"shown with the next question: {', '.join(self._next.files)}")
        elif name.startswith("/"):
            raise UserError(f"no command {name}", "/help lists them")
        elif line:
            self.ask(line)
        return True

    def _undo(self) -> None:
        if not self.messages or self.messages[-1].role != "assistant":
            raise UserError("there is no question to take back")
        self._note(f"taken back: {printable(self.messages[-2].text)}")
        del self.messages[-2:], self._files[-2:]

    def _clear(self) -> None:
        self.set_system(self.messages[0].text if self.messages and self.messages[0].role == "system" else "")
        self._next = Attached()

    def _save(self, path: Path) -> None:
        if path.exists():
            raise UserError("this file is there already", "choose another name", file=path)
        said = [
            {"role": message.role, "content": message.text, **({"files": files} if files else {})}
            for message, files in zip(self.messages, self._files, strict=True)
        ]
        try:
            write_json(path, {"model": self._model.name, "messages": said})
        except OSError as error:  # which would name the file under its name until it is whole
            raise UserError(f"cannot be written: {error.strerror}", "choose another place", file=path) from error
        self._note(f"saved: {path}")

    def _print(self, text: str) -> None:
        print(text, end="", file=self._out, flush=True)

    def _note(self, text: str) -> None:
        print(text, file=self._notes, flush=True)


def printable(text: str) -> str:
    """``text`` without what a terminal would obey."""
    return _OBEYED.sub("", text)


def _file(name: str) -> Path:
    if not name:
        raise UserError("the name of a file is missing", "as in /image cat.jpg")
    return Path(name).expanduser()
