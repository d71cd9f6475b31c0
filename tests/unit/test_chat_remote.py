"""Talking with a model behind an OpenAI-compatible server: what is sent, what is shown, what is wrong."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pictures

from vlmflow.chat.answerer import open_model
from vlmflow.chat.conversation import Message, Settings, Video, question
from vlmflow.chat.remote import KEY, RemoteModel, content
from vlmflow.errors import UserError
from vlmflow.main import main

WORDS = ("The ", "<b>cat</b> ", "\N{CAT FACE}", " ")


class Server:
    """Streams ``WORDS``, and notes what it was asked."""

    def __init__(self) -> None:
        self.models, self.status, self.finish = ["qlora"], 200, "stop"
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        handler = type("Handler", (_Handler,), {"server_of_test": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


class _Handler(BaseHTTPRequestHandler):
    server_of_test: Server

    def do_GET(self) -> None:
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "x"} for name in self.server_of_test.models]
        self._send("application/json", json.dumps({"object": "list", "data": models}).encode())

    def do_POST(self) -> None:
        server = self.server_of_test
        server.requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        server.keys.append(self.headers["Authorization"])
        if server.status != 200:
            told = {"error": {"message": f"no: {self.headers['Authorization']}"}}
            self._send("application/json", json.dumps(told).encode(), server.status)
            return
        chunks = [{"delta": {"content": word}, "finish_reason": None} for word in WORDS]
        lines = [*chunks, {"delta": {}, "finish_reason": server.finish}]
        told = [{"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m",
                 "choices": [{"index": 0, **line}]} for line in lines]  # fmt: skip
        events = "".join(f"data: {json.dumps(event)}\n\n" for event in told)
        self._send("text/event-stream", (events + "data: [DONE]\n\n").encode())

    def _send(self, kind: str, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    opened = Server()
    yield opened
    opened.close()


def red() -> Pictures.Image:
    return Pictures.new("RGB", (3, 2), "red")


def test_answers_grow_as_they_come(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "secret")
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    server.finish = "length"
    model = open_model(server.address)
    replies = list(model.stream([Message("system", "Be brief."), question("What?", [red()])], Settings(7, 0.5, 0.9, 3)))
    assert model.name == "qlora"
    assert [reply.text for reply in replies[:3]] == ["The", "The <b>cat</b>", "The <b>cat</b> \N{CAT FACE}"]
    assert [reply.cut for reply in replies] == [False] * 4 + [True]
    (asked,) = server.requests
    assert server.keys == ["Bearer secret"]
    assert {key: asked[key] for key in ("model", "max_tokens", "temperature", "top_p", "seed", "stream")} == {
        "model": "qlora", "max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "seed": 3, "stream": True}  # fmt: skip
    assert asked["messages"][0] == {"role": "system", "content": "Be brief."}
    shown, words = asked["messages"][1]["content"]
    sent = Pictures.open(BytesIO(base64.b64decode(shown["image_url"]["url"].removeprefix("data:image/png;base64,"))))
    assert sent.size == (3, 2) and sent.getpixel((0, 0)) == (255, 0, 0) and words == {"type": "text", "text": "What?"}


def test_another_key_is_not_sent(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    list(RemoteModel(server.address).stream([question("What?")], Settings()))
    assert server.keys == ["Bearer EMPTY"]


@pytest.mark.parametrize(
    ("message", "in_order", "expected"),
    [
        (question("Q", [red(), red()]), True, ["", "", "Q"]),
        (question("Q", [red(), red()]), False, ["", "", "Q"]),
        (question("a <image> b", [red()]), True, ["a ", "", " b"]),
        (question("a <image> b", [red()]), False, ["", "a  b"]),
        (question("Q", [Video((red(), red()))]), True, ["Frame1: ", "", "Frame2: ", "", "Q"]),
        (question("Q", [Video((red(), red()))]), False, ["", "", "Q"]),
        (question("", [red()]), True, [""]),
    ],
)
def test_places_of_pictures(message: Message, in_order: bool, expected: list[str]) -> None:
    parts: Any = content(message, in_order)
    assert [part.get("text", "") for part in parts] == expected


def test_a_model_is_found_by_its_folder(server: Server) -> None:
    server.models = ["other", "/models/qlora"]
    assert RemoteModel(server.address, "results/converted/qlora/manifest.json").name == "/models/qlora"
    with pytest.raises(UserError, match=r"no model 'x' there\n.*it has other, /models/qlora"):
        RemoteModel(server.address, "x")


@pytest.mark.parametrize(
    ("status", "message"), [(401, f"not allowed: .*\n.*{KEY}"), (400, "the server refuses: .*no"), (500, "refuses")]
)
def test_what_a_server_refuses(server: Server, status: int, message: str) -> None:
    server.status = status
    with pytest.raises(UserError, match=message):
        list(RemoteModel(server.address).stream([question("What?")], Settings()))


def test_a_key_that_is_sent_back_is_not_shown(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, " sk-secret\n")
    server.status = 401
    with pytest.raises(UserError, match=r"no: Bearer \(key\)") as raised:
        list(RemoteModel(server.address).stream([question("What?")], Settings()))
    assert server.keys == ["Bearer sk-secret"] and "sk-secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:9/v1", "no connection"),
        ("http://user:secret@127.0.0.1/v1", "holds a user, password"),
        ("http:///v1", "no address"),
    ],
)
def test_what_is_no_server(address: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(UserError, match=message):
        open_model(address)


def test_the_command_asks_a_server(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    red().save(tmp_path / "a.png")
    command = ["chat", "qlora", "--backend", server.address, "--image", str(tmp_path / "a.png")]
    main([*command, "--question", "What?"])
    assert capsys.readouterr().out == "The <b>cat</b> \N{CAT FACE}\n"
    monkeypatch.setattr("sys.stdin", StringIO("And\nthis?\n"))
    main(command)
    monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(b"Un caf\xe9?\n"), "utf-8"))
    main(command)
    main([*command, "--question", "Un caf\udce9?"])
    asked = [request["messages"][-1]["content"][1]["text"] for request in server.requests[1:]]
    assert asked == ["And\nthis?", *["Un caf\ufffd?"] * 2]
