"""The commands chat and app: options that are refused, how they end, and where they may listen."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from vlmflow.chat import app_command
from vlmflow.chat.conversation import Message, Reply, Settings
from vlmflow.main import main

APP = ["app", "--before", "a", "--after", "b"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["chat", "m", "--temperature", "-1"], "must be 0 or a number above"),
        (["chat", "m", "--temperature", "nan"], "must be 0 or a number above"),
        (["chat", "m", "--temperature", "inf"], "must be 0 or a number above"),
        (["chat", "m", "--top-p", "5"], "must be above 0 and at most 1"),
        (["chat", "m", "--top-p", "0"], "must be above 0 and at most 1"),
        ([*APP, "--port", "99999"], "must be between 1 and 65535"),
        (["serve", "m", "--port", "0"], "must be between 1 and 65535"),
        ([*APP, "--prompt", "What?"], "write {question} once"),
    ],
)
def test_options_that_are_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2 and message in capsys.readouterr().err


@pytest.fixture
def unchanged(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The handlers of signals and the environment are afterwards what they were."""
    for name in ("GRADIO_ANALYTICS_ENABLED", "HF_HUB_OFFLINE", "GRADIO_TEMP_DIR"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for one, handler in before.items():
        signal.signal(one, handler)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("host", "more", "message"),
    [
        ("127.0.0.1", [], "port {port} is in use\n    -> choose another with --port"),
        ("no.such.host.invalid", [], "cannot listen at no.such.host.invalid: "),
        ("127.0.0.1", ["--backend", "x", "y", "z"], "3 back ends for two models"),
    ],
)
def test_where_it_cannot_listen(host: str, more: list[str], message: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        with pytest.raises(SystemExit) as ended:
            main([*APP, "--host", host, "--port", str(port), *more])
    assert message.format(port=port) in str(ended.value.code)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGHUP])
def test_uploads_go_when_it_ends(ending: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    folders: list[Path] = []

    def serve(_: object) -> None:
        folders.append(Path(os.environ["GRADIO_TEMP_DIR"]))
        (folders[0] / "upload.png").touch()
        os.kill(os.getpid(), ending)

    monkeypatch.setattr(app_command, "_serve", serve)
    with pytest.raises(SystemExit) as ended:
        main(APP)
    assert ended.value.code == 130 and not folders[0].exists()


class Interrupted:
    """A model during whose answer the user presses Ctrl-C."""

    name = "interrupted"

    def stream(self, messages: Sequence[Message], settings: Settings) -> Iterator[Reply]:
        """Half an answer."""
        del messages, settings
        yield Reply("half")
        raise KeyboardInterrupt


def test_a_question_that_is_stopped_has_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vlmflow.chat.terminal_command.open_model", lambda *_: Interrupted())
    with pytest.raises(SystemExit) as ended:
        main(["chat", "m", "--question", "What?"])
    assert ended.value.code == 130 and capsys.readouterr().out == "half\n"
