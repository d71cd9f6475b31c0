"""A page on which two models answer the same question about the same pictures, side by side."""

from __future__ import annotations

import html
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gradio as gr

from vlmflow.chat.answerer import Answerer
from vlmflow.chat.conversation import Message, Settings, question
from vlmflow.chat.examples import Example
from vlmflow.chat.media import open_picture
from vlmflow.chat.together import Progress, answer_together
from vlmflow.errors import UserError

LABELS = ("Before", "After")
_CSS = Path(__file__).with_name("app.css")
_PRIVATE: dict[str, Any] = {"api_visibility": "private"}
_MOST_WAITING = 32  # users; each that waits keeps a thread
_PATIENCE = 0.3  # seconds between looks whether another user has been answered
_STATES = {
    "queued": "waits for another user", "waiting": "waits", "thinking": "answers …", "stopped": "stopped",
    "cut": "cut at the limit of tokens", "failed": "failed",
}  # fmt: skip


@dataclass
class Asked:
    """A question on its way: the user may ``stop`` it, and it is ``dropped`` with all answers when he changes it."""

    stop: threading.Event = field(default_factory=threading.Event)
    dropped: bool = False


class App:
    """The page for two ``models``, before and after; both answer ``at_once`` or one after the other.

    So many ``users`` are answered at the same time; the others wait.
    """

    def __init__(
        self,
        models: Sequence[Answerer],
        examples: Sequence[Example],
        settings: Settings,
        at_once: bool,
        users: int,
        title: str,
    ) -> None:
        self._models, self._examples, self._settings = models, examples, settings
        self._at_once, self._title = at_once, title
        self._room = threading.BoundedSemaphore(users)
        self._asked: dict[str, Asked] = {}  # by session
        self.blocks = self._build()

    def launch(self, host: str, port: int | None) -> None:
        """Serve the page until the process ends; no other file of this machine can be read through it."""
        theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
        self.blocks.queue(default_concurrency_limit=_MOST_WAITING).launch(
            server_name=host, server_port=port, share=False, quiet=True, prevent_thread_lock=True, ssr_mode=False,
            allowed_paths=[], max_file_size="100mb", footer_links=[], enable_monitoring=False, mcp_server=False,
            theme=theme, css=_CSS.read_text(encoding="utf-8"),
        )  # fmt: skip

    def _build(self) -> gr.Blocks:
        with gr.Blocks(title=self._title, analytics_enabled=False, delete_cache=(3600, 86400)) as blocks:
            gr.HTML(f"<h1>{html.escape(self._title)}</h1>", elem_id="title")
            gallery = self._examples_shown()
            with gr.Row():
                with gr.Column(min_width=280):
                    pictures = gr.Gallery(
                        label="Pictures", type="filepath", format="png", file_types=["image"], interactive=True,
                        columns=2, height=240, object_fit="contain", sources=["upload", "clipboard"],
                        buttons=["fullscreen"], elem_id="pictures",
                    )  # fmt: skip
                with gr.Column(min_width=280):
                    text = gr.Textbox(
                        label="Question", lines=3, max_lines=8, elem_id="question",
                        placeholder="What is in the picture?", info="Shift+Enter asks",
                    )  # fmt: skip
                    with gr.Row():
                        ask = gr.Button("Ask both", variant="primary", elem_id="ask", min_width=120)
                        stop = gr.Button("Stop", elem_id="stop", min_width=80)
                    reference = gr.Textbox(
                        label="Reference answer of the example", interactive=False, visible=False, elem_id="reference"
                    )
            with gr.Row():
                answers = [self._answer_box(index) for index in range(len(LABELS))]
            with gr.Accordion("Settings", open=False):
                system = gr.Textbox(label="System prompt", lines=2, elem_id="system")
                longest = self._settings.max_new_tokens
                tokens = gr.Slider(1, max(2048, longest), longest, step=1, label="Longest answer, in tokens")
                temperature = gr.Slider(0, 2, self._settings.temperature, step=0.05, label="Temperature",
                                        info="0: always the likeliest word")  # fmt: skip
            gallery.select(self._choose, None, [pictures, text, reference, system, *answers], queue=False, **_PRIVATE)
            for changed in (text.input, pictures.upload, pictures.delete):  # "multiple": none comes late, after a click
                changed(self._change, None, [reference, *answers], queue=False, show_progress="hidden",
                        trigger_mode="multiple", **_PRIVATE)  # fmt: skip
            gr.on([ask.click, text.submit], self._ask, [pictures, text, system, tokens, temperature], answers,
                  show_progress="hidden", **_PRIVATE)  # fmt: skip
            stop.click(self._stop, None, None, queue=False, **_PRIVATE)
        return blocks

    def _examples_shown(self) -> gr.Gallery:
        return gr.Gallery(
            [(one.preview(), one.question) for one in self._examples], visible=bool(self._examples), format="png",
            label="Held-out examples: choose one", columns=6, height="auto", object_fit="contain",
            allow_preview=False, interactive=False, buttons=[], elem_id="examples",
        )  # fmt: skip

    def _answer_box(self, index: int) -> gr.Textbox:
        """Plain text: nothing in an answer is HTML."""
        with gr.Column(min_width=280):
            return gr.Textbox(
                label=self._label(index), lines=4, max_lines=24, interactive=False, buttons=["copy"],
                elem_id=LABELS[index].lower(), placeholder="The answer appears here",
            )  # fmt: skip

    def _label(self, index: int, progress: Progress | None = None) -> str:
        name = f"{LABELS[index]} · {self._models[index].name}"
        if progress is None:
            return name
        return f"{name} · {_STATES.get(progress.state) or f'{progress.seconds:.1f} s'}"

    def _empty(self) -> list[Any]:
        return [gr.update(value="", label=self._label(index)) for index in range(len(LABELS))]

    def _choose(self, chosen: gr.SelectData, request: gr.Request) -> list[Any]:
        """Pictures, question, reference and system prompt of the example that was clicked, and no answers."""
        example = self._examples[int(chosen.index)]
        try:
            pictures = example.pictures()
        except UserError as error:
            raise gr.Error(_shown(error), print_exception=False) from error
        shown = gr.update(value=example.reference, visible=True)
        return [pictures, example.question, shown, example.system, *self._drop(request)]

    def _change(self, request: gr.Request) -> list[Any]:
        """Another question or picture: no reference and no answers."""
        return [gr.update(visible=False), *self._drop(request)]

    def _drop(self, request: gr.Request) -> list[Any]:
        """End what answers the last question; the boxes are empty then."""
        if asked := self._asked.get(str(request.session_hash)):
            asked.dropped = True
            asked.stop.set()
        return self._empty()

    def _ask(
        self,
        pictures: list[tuple[str, str | None]] | None,
        text: str | None,
        system: str | None,
        tokens: int,
        temperature: float,
        request: gr.Request,
    ) -> Iterator[list[Any]]:
        """What both answer boxes show, as the answers grow. Fields that nobody touched are None."""
        asked = self._asked[str(request.session_hash)] = Asked()
        yield self._empty()
        try:
            messages = _messages(text or "", system or "", [Path(path) for path, _ in pictures or []])
            settings = Settings(int(tokens), float(temperature), self._settings.top_p, self._settings.seed)
            for progress in self._answers(messages, settings, asked.stop):
                if asked.dropped:
                    break
                yield [gr.update(value=one.text, label=self._label(index, one)) for index, one in enumerate(progress)]
            if asked.dropped:  # here, too: what was on its way before would be shown after it
                yield self._empty()
        except UserError as error:
            raise gr.Error(_shown(error), print_exception=False) from error
        finally:
            if self._asked.get(str(request.session_hash)) is asked:
                del self._asked[str(request.session_hash)]

    def _answers(
        self, messages: Sequence[Message], settings: Settings, stop: threading.Event
    ) -> Iterator[Sequence[Progress]]:
        """How far both are, or that they wait until another user has his answers."""
        while not self._room.acquire(timeout=_PATIENCE):
            yield [Progress(state="stopped" if stop.is_set() else "queued")] * len(LABELS)
            if stop.is_set():
                return
        try:
            yield from answer_together(self._models, messages, settings, self._at_once, stop)
        finally:
            self._room.release()

    def _stop(self, request: gr.Request) -> None:
        if asked := self._asked.get(str(request.session_hash)):
            asked.stop.set()


def _messages(text: str, system: str, pictures: Sequence[Path]) -> list[Message]:
    """What the fields of the page ask; as typed, since a space more is another prompt."""
    asked = question(text, [open_picture(path) for path in pictures])
    if not asked.text.strip():
        raise UserError("there is no question yet", "type one")
    return [*([Message("system", system)] if system.strip() else []), asked]


def _shown(error: UserError) -> str:
    """A message as HTML; of an uploaded file the name alone."""
    problem = error.problem
    if problem.file is not None:
        problem = replace(problem, file=Path(problem.file).name)
    return html.escape(str(problem)).replace("\n", "<br>")
