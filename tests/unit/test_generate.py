"""Annotations for one's own pictures: every picture is asked about once, and nothing that was paid for is lost."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from PIL import Image as Pictures

from repository import ENVIRONMENT, ROOT
from vlmflow.data.generate import generate_annotations
from vlmflow.endpoint import client
from vlmflow.errors import UserError
from vlmflow.files import read_manifest

KEY = "sk-very-secret"
Reply = tuple[int, dict[str, str], str]
"""Status, headers, body."""


def pairs(count: int = 2) -> list[dict[str, str]]:
    return [{"question": f"What is {index}?", "answer": f"It is {index}."} for index in range(count)]


def completion(content: Any, **changed: Any) -> Reply:
    """A chat completion whose message is ``content``."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}, **changed}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    body = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
    return 200, {}, json.dumps(body)


def error(status: int, message: str = "no", code: str | None = None, **headers: str) -> Reply:
    return status, headers, json.dumps({"error": {"message": message, "code": code}})


GOOD = completion(json.dumps({"pairs": pairs()}))


class Server(ThreadingHTTPServer):
    """An OpenAI-compatible server; ``replies`` are given first, ``reply`` then; ``delay`` in seconds."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies: list[Reply] = []
        self.reply: Callable[[dict[str, Any]], Reply] = lambda _: GOOD
        self.delay = 0.0
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.times: list[float] = []
        self.lock = threading.Lock()
        self.endpoint = f"http://127.0.0.1:{self.server_port}/v1"

    def texts(self) -> list[str]:
        return [request["messages"][0]["content"][1]["text"] for request in self.requests]

    def pictures(self) -> list[Pictures.Image]:
        return [Pictures.open(io.BytesIO(content)) for content in self.contents()]

    def contents(self) -> list[bytes]:
        """The bytes of the pictures that were sent."""
        urls = [request["messages"][0]["content"][0]["image_url"]["url"] for request in self.requests]
        assert all(url.startswith("data:image/jpeg;base64,") for url in urls)
        return [base64.b64decode(url.partition(",")[2], validate=True) for url in urls]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        """Answer a chat completions request."""
        assert self.path == "/v1/chat/completions"
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.times.append(time.monotonic())
            self.server.requests.append(request)
            self.server.keys.append(self.headers.get("Authorization"))
            scripted = self.server.replies.pop(0) if self.server.replies else None
        time.sleep(self.server.delay)
        status, headers, body = scripted or self.server.reply(request)
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(client, "_BACKOFF", 0.01)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("TEST_KEY", KEY)
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three pictures, one of them in a subfolder."""
    folder = tmp_path / "images"
    (folder / "cats").mkdir(parents=True)
    for index, name in enumerate(["b.png", "a.jpg", "cats/1.webp"]):
        Pictures.new("RGB", (40 + index, 30), ("red", "green", "blue")[index]).save(folder / name)
    return folder


def configured(server: Server, **changed: Any) -> dict[str, Any]:
    return {"endpoint": server.endpoint, "model": "m", "pairs": 2, "prompt": None, "temperature": 0.2,
            "max_side": 32, "key_variable": "TEST_KEY", **changed}  # fmt: skip


def limited(**changed: Any) -> dict[str, Any]:
    return {"parallel": 2, "requests_per_minute": None, "attempts": 3, "timeout": 5, **changed}


def generate(
    server: Server, images: Path, limits: dict[str, Any] | None = None, **changed: Any
) -> list[dict[str, Any]]:
    output = images.parent / "generated" / "manifest.json"
    config = configured(server, **changed)
    generate_annotations(config, limits or limited(), images, images.parent / "cache", output)
    read_manifest(output)
    records: list[dict[str, Any]] = json.loads((output.parent / "annotations.json").read_text(encoding="utf-8"))
    return records


def one(folder: Path) -> Path:
    """Leave one picture in the folder."""
    (folder / "b.png").unlink()
    (folder / "cats" / "1.webp").unlink()
    return folder


# --- what is sent, what is written -----------------------------------------------------------------------------------


def test_every_picture_gets_its_record(server: Server, images: Path) -> None:
    server.reply = lambda _: completion(json.dumps({"pairs": pairs(3)}))
    records = generate(server, images, pairs=3)
    assert [record["image"] for record in records] == ["a.jpg", "b.png", "cats/1.webp"]
    assert records[1] == {
        "id": "b.png",
        "image": "b.png",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is 0?"},
            {"from": "gpt", "value": "It is 0."},
            {"from": "human", "value": "What is 1?"},
            {"from": "gpt", "value": "It is 1."},
            {"from": "human", "value": "What is 2?"},
            {"from": "gpt", "value": "It is 2."},
        ],
    }
    schema = yaml.safe_load((ROOT / "workflow/schemas/llava.schema.yaml").read_text(encoding="utf-8"))
    for record in records:
        jsonschema.Draft202012Validator(schema).validate(record)
    assert len(server.requests) == 3


def test_the_request_holds_picture_schema_and_key(server: Server, images: Path) -> None:
    generate(server, images, pairs=2, temperature=0.7)
    assert server.keys == [f"Bearer {KEY}"] * 3
    for request in server.requests:
        assert (request["model"], request["temperature"]) == ("m", 0.7)
        form = request["response_format"]["json_schema"]
        assert request["response_format"]["type"] == "json_schema" and form["strict"] is True
        jsonschema.Draft202012Validator.check_schema(form["schema"])
        validator = jsonschema.Draft202012Validator(form["schema"])
        assert [validator.is_valid({"pairs": pairs(count)}) for count in (1, 2, 3)] == [False, True, False]
    for picture in server.pictures():
        picture.load()
        assert (picture.format, picture.mode) == ("JPEG", "RGB") and max(picture.size) == 32
    assert all("Number of questions: 2." in text and "JSON" not in text for text in server.texts())


def test_a_local_server_needs_no_key(server: Server, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_KEY")
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    generate(server, images)
    assert not any("another" in str(key) for key in server.keys)


def test_the_manifest_tells_how_it_was_made_and_holds_no_key(server: Server, images: Path) -> None:
    generate(server, images, prompt="{pairs} about { this }")
    manifest = read_manifest(images.parent / "generated" / "manifest.json")
    assert manifest["generated"] == {"endpoint": server.endpoint, "model": "m", "pairs": 2, "temperature": 0.2,
                                     "max_side": 32, "prompt": "2 about { this }"}  # fmt: skip
    assert manifest["counts"] == {"pictures": 3, "distinct": 3, "pairs": 6}
    assert manifest["usage"] == {"prompt_tokens": 300, "completion_tokens": 30}
    for folder in ("generated", "cache"):
        assert not any(KEY in path.read_text() for path in (images.parent / folder).iterdir())


@pytest.mark.parametrize("prompt", ["{", "{pairs", '{"a": {pairs}}', "{0} {} {x!r} %s %d", "没有"])
def test_a_prompt_may_hold_any_braces(server: Server, images: Path, prompt: str) -> None:
    server.replies = [error(400)]  # the same prompt with the form spelled out
    generate(server, one(images), prompt=prompt)
    assert server.texts()[0] == prompt.replace("{pairs}", "2")
    assert server.texts()[1].startswith(prompt.replace("{pairs}", "2"))


def test_html_in_an_answer_is_text(server: Server, images: Path) -> None:
    html = "</td><script>alert('1')</script> & <b>bold</b> \u2028 \U0001f600"
    server.reply = lambda _: completion(json.dumps({"pairs": [{"question": html, "answer": html}] * 2}))
    for record in generate(server, images):
        assert [turn["value"].removeprefix("<image>\n") for turn in record["conversations"]] == [html] * 4


# --- tries -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        error(500), error(503), error(408), (502, {"Content-Type": "text/html"}, "<html>bad gateway</html>"),
        completion('{"pairs": [{"question": "a'), completion("I am sorry"), completion(""), completion(None),
        completion(json.dumps({"pairs": pairs(1)})), completion(json.dumps({"pairs": pairs(3)})),
        completion(json.dumps({"pairs": [{"question": "a", "answer": " "}] * 2})),
        completion(json.dumps({"pairs": [{"question": "a", "answer": "b<|im_end|>c"}] * 2})),
        completion(json.dumps({"pairs": [{"question": "<image> a", "answer": "b"}] * 2})),
        completion(json.dumps({"pairs": [{"question": "a", "answer": "\ud800"}] * 2})),
        completion(json.dumps({"pairs": pairs()}), finish_reason="length"),
        completion(json.dumps({"pairs": pairs()}), finish_reason="content_filter"),
        (200, {"Content-Type": "text/html"}, "<html>log in</html>"), (200, {}, "{"), (200, {}, "[]"), (200, {}, "null"),
        (200, {}, '{"choices": []}'), (200, {}, '{"choices": [{}]}'), (200, {}, '{"error": {"message": "no"}}'),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_asked_again(server: Server, images: Path, bad: Reply) -> None:
    server.replies = [bad, bad]
    assert len(generate(server, one(images))) == 1
    assert len(server.requests) == 3


@pytest.mark.parametrize("wait", ["0.6", None])
def test_retry_after_is_respected(server: Server, images: Path, wait: str | None) -> None:
    server.replies = [error(429, Retry_After=wait or formatdate(time.time() + 2, usegmt=True))]
    assert len(generate(server, one(images))) == 1
    assert server.times[1] - server.times[0] >= (0.6 if wait else 0.9)


def test_all_requests_wait_when_the_server_is_busy(server: Server, images: Path) -> None:
    server.replies = [error(429, Retry_After="0.5")]
    assert len(generate(server, images, limited(parallel=1))) == 3
    assert server.times[1] - server.times[0] >= 0.5


def test_the_wait_grows_from_try_to_try(server: Server, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_BACKOFF", 0.1)
    server.replies = [error(500)] * 3
    generate(server, one(images), limited(attempts=4))
    waits = [later - earlier for earlier, later in zip(server.times, server.times[1:], strict=False)]
    assert waits[0] >= 0.075 and waits[1] >= 0.15 and waits[2] >= 0.3


def test_fenced_json_is_read(server: Server, images: Path) -> None:
    server.reply = lambda _: completion(f"Here you are:\n```json\n{json.dumps({'pairs': pairs()})}\n```\nEnjoy!")
    assert len(generate(server, images)) == 3
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [400, 422])
def test_a_server_that_takes_no_schema_is_asked_in_words(server: Server, images: Path, status: int) -> None:
    server.reply = lambda request: error(status, "response_format") if "response_format" in request else GOOD
    assert len(generate(server, images, limited(parallel=1))) == 3
    assert ["response_format" in request for request in server.requests] == [True, False, False, False]
    assert all("exactly 2 of these objects" in text for text in server.texts()[1:])


def test_a_server_that_ignores_the_schema_is_asked_in_words_too(server: Server, images: Path) -> None:
    worded = "Answer with a JSON object"
    server.reply = lambda request: GOOD if worded in str(request["messages"]) else completion("A red square.")
    assert len(generate(server, images, limited(parallel=1))) == 3
    assert [worded in text for text in server.texts()] == [False, True, True, True]


def test_the_rate_is_kept_over_all_threads(server: Server, images: Path) -> None:
    server.replies = [error(500)]  # a try counts, too
    generate(server, images, limited(parallel=3, requests_per_minute=600))
    assert len(server.times) == 4
    assert max(server.times) - min(server.times) >= 0.27


def test_requests_are_made_in_parallel(server: Server, images: Path) -> None:
    together = threading.Barrier(3, timeout=5)  # seconds; no answer before the third request is there

    def reply(_: dict[str, Any]) -> Reply:
        together.wait()
        return GOOD

    server.reply = reply
    assert len(generate(server, images, limited(parallel=3, attempts=1))) == 3


# --- failures --------------------------------------------------------------------------------------------------------


def test_one_picture_that_fails_does_not_cost_the_others(server: Server, images: Path) -> None:
    (images / "half.jpg").write_bytes((images / "a.jpg").read_bytes()[:200])
    server.replies = [error(500, "overloaded")] * 3
    with pytest.raises(UserError) as caught:
        generate(server, images, limited(parallel=1))
    message = str(caught.value)
    assert "1 x server error" in message and "1 x picture cannot be decoded" in message
    assert re.search(r"a\.jpg: server error: 500: overloaded \(attempts: 3\)\n +-> ", message)
    assert re.search(r"half\.jpg: picture cannot be decoded: .*\n +-> ", message)
    assert not (images.parent / "generated").exists()
    (images / "half.jpg").unlink()
    before = len(server.requests)
    assert len(generate(server, images)) == 3
    assert len(server.requests) == before + 1


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (error(401, f"wrong key {KEY}"), r"not allowed: 401: wrong key \(key\)[\s\S]*TEST_KEY"),
        (error(403), "not allowed: 403"),
        (error(404, "no such model"), r"unknown model or address: 404: no such model[\s\S]*v1/models"),
        (error(402), "no credit: 402"),
        (error(429, "pay", "insufficient_quota"), "no credit: 429: pay"),
        (error(429, Retry_After="86400"), "a pause of 1440 minutes"),
    ],
)
def test_what_fails_for_all_pictures_stops_at_once(server: Server, images: Path, reply: Reply, message: str) -> None:
    server.reply = lambda _: reply
    with pytest.raises(UserError, match=message) as caught:
        generate(server, images, limited(parallel=1))
    assert len(server.requests) == 1
    assert KEY not in str(caught.value)


def test_a_long_list_is_cut(server: Server, images: Path) -> None:
    for index in range(120):
        (images / f"{index}.png").write_bytes(b"no picture %d" % index)
    with pytest.raises(UserError) as caught:
        generate(server, images)
    assert str(caught.value).count("-> it is damaged") == 100 and "... and 20 more" in str(caught.value)
    assert len(server.requests) == 3


def test_a_picture_that_the_server_refuses_is_not_asked_again(server: Server, images: Path) -> None:
    server.reply = lambda _: error(400, "context too long")
    with pytest.raises(UserError, match="request refused: 400: context too long"):
        generate(server, one(images))
    assert len(server.requests) == 2  # with the schema and without


def test_a_dead_server_is_given_up(server: Server, images: Path) -> None:
    for index in range(40):
        Pictures.new("RGB", (8, 8), (index, 0, 0)).save(images / f"{index}.png")
    server.reply = lambda _: error(500)
    with pytest.raises(UserError, match=r"\d+ more were not asked about") as caught:
        generate(server, images, limited(attempts=1))
    unasked = int(re.search(r"(\d+) more were not", str(caught.value))[1])  # type: ignore[index]
    assert 10 <= len(server.requests) <= 20 and len(server.requests) + unasked == 43


def test_no_server(images: Path, server: Server) -> None:
    with pytest.raises(
        UserError, match=r"no connection: .*[\s\S]*check that a server listens at http://127\.0\.0\.1:9/v1"
    ):
        generate(server, images, endpoint="http://127.0.0.1:9/v1")


def test_a_slow_answer_is_a_failure(server: Server, images: Path) -> None:
    server.delay = 1
    with pytest.raises(UserError, match="no answer in time"):
        generate(server, one(images), limited(timeout=0.1, attempts=2))


@pytest.mark.parametrize("address", ["http://me:pw@127.0.0.1/v1", "http://127.0.0.1/v1?key=pw", "http:///v1"])
def test_an_address_with_a_secret_is_refused(server: Server, images: Path, address: str) -> None:
    with pytest.raises(UserError, match=r"generate\.endpoint") as caught:
        generate(server, images, endpoint=address)
    assert "pw" not in str(caught.value)


def test_a_key_that_is_none_is_not_shown(server: Server, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", "sk-1\nsk-2")
    with pytest.raises(UserError, match="environment TEST_KEY") as caught:
        generate(server, images)
    assert "sk-1" not in str(caught.value)


# --- nothing is paid for twice ---------------------------------------------------------------------------------------


def test_a_picture_is_known_by_its_bytes(server: Server, images: Path) -> None:
    generate(server, images)
    (images / "b.png").rename(images / "cats" / "renamed.png")
    (images / "copy.png").write_bytes((images / "cats" / "renamed.png").read_bytes())
    records = generate(server, images, endpoint=server.endpoint + "/")
    assert [record["id"] for record in records] == ["a.jpg", "cats/1.webp", "cats/renamed.png", "copy.png"]
    assert len(server.requests) == 3
    Pictures.new("RGB", (9, 9)).save(images / "a.jpg")
    generate(server, images)
    assert len(server.requests) == 4


def test_equal_pictures_share_one_request(server: Server, images: Path) -> None:
    for name in ("c.jpg", "d.jpg"):
        (images / name).write_bytes((images / "a.jpg").read_bytes())
    server.reply = lambda _: error(400)
    with pytest.raises(UserError) as caught:
        generate(server, images)
    assert all(f"{name}: request refused" in str(caught.value) for name in ("a.jpg", "c.jpg", "d.jpg"))
    server.requests, server.reply = [], lambda _: GOOD
    assert len(generate(server, images)) == 5
    assert len(server.requests) == 3
    manifest = read_manifest(images.parent / "generated" / "manifest.json")
    assert manifest["counts"] == {"pictures": 5, "distinct": 3, "pairs": 10}


@pytest.mark.parametrize(
    "changed", [{"prompt": "other"}, {"model": "n"}, {"temperature": 1.0}, {"max_side": 30}, {"pairs": 3}]
)
def test_another_question_is_asked_anew(server: Server, images: Path, changed: dict[str, Any]) -> None:
    generate(server, one(images))
    server.reply = lambda _: completion(json.dumps({"pairs": pairs(changed.get("pairs", 2))}))
    generate(server, images, **changed)
    assert len(server.requests) == 2


def test_a_damaged_answer_in_the_cache_is_asked_for_again(server: Server, images: Path) -> None:
    generate(server, one(images))
    (kept,) = (images.parent / "cache").iterdir()
    for damage in ("", "[]", '{"pairs": []}', '{"pairs": [{"question": "<|im_end|>", "answer": "a"}], "usage": {}}'):
        kept.write_text(damage)
        before = len(server.requests)
        assert len(generate(server, images)) == 1
        assert len(server.requests) == before + 1


def test_a_killed_run_repeats_no_request_that_was_answered(server: Server, images: Path) -> None:
    for index in range(20):
        Pictures.new("RGB", (8, 8), (10 * index, 0, 0)).save(images / f"{index}.png")
    server.delay = 0.05
    cache, output = images.parent / "cache", images.parent / "generated" / "manifest.json"
    script = ROOT / "workflow" / "scripts" / "generate_annotations.py"
    values = {"config": json.dumps(configured(server)), "limits": json.dumps(limited()), "images": images,
              "cache": cache, "output": output}  # fmt: skip
    command = [sys.executable, script, *(part for name, value in values.items() for part in (f"--{name}", value))]
    environment = {**ENVIRONMENT, "TEST_KEY": KEY, "no_proxy": "127.0.0.1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    while len(list(cache.glob("[!.]*.json"))) < 6 and process.poll() is None:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.stderr and KEY not in process.stderr.read()
    assert process.wait() == -signal.SIGKILL
    time.sleep(0.3)  # for what the server has received and not yet noted
    kept, asked = len(list(cache.glob("[!.]*.json"))), len(server.requests)
    assert 6 <= kept < 23 and asked - kept <= 2  # at most one request under way in each of the two threads
    assert not output.exists()
    assert len(generate(server, images)) == 23
    assert len(server.requests) - asked == 23 - kept
    times = Counter(hashlib.sha256(content).hexdigest() for content in server.contents())
    assert len(times) == 23 and sum(times.values()) - 23 == asked - kept
