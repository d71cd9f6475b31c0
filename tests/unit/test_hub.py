"""The real hub client against a local server that speaks the hub's protocol."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {"config.json": b"{}", "model.safetensors": b"weights" * 1000, "sub/readme.md": b"text"}


def pointer(content: bytes) -> dict[str, object]:
    """What the hub tells of a large file."""
    return {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}


def listing(name: str, content: bytes) -> dict[str, object]:
    """A line of the hub's tree; the id of a large file is that of its pointer, which nobody downloads."""
    entry = {"type": "file", "path": name, "size": len(content)}
    if "safetensors" in name:
        return {**entry, "oid": "1" * 40, "lfs": pointer(content)}
    return {**entry, "oid": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()}


class Server(ThreadingHTTPServer):
    """What was asked for, which files are refused or sent otherwise for now, and whether the repository is gated."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Hub)
        self.asked, self.tokens, self.refused, self.gated = list[str](), set[str | None](), set[str](), False
        self.sent = dict(FILES)
        self.url = f"http://127.0.0.1:{self.server_port}"


class Hub(BaseHTTPRequestHandler):
    """One model repository, owner/model, with the two routes that a download uses."""

    server: Server

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = self.path.split("?")[0]
        if "owner/model" in path:  # the client also asks for what concerns no repository, without a token
            self.server.tokens.add(self.headers.get("Authorization"))
        name = path.removeprefix(f"/owner/model/resolve/{COMMIT}/")
        if self.server.gated:
            self.send_response(403)
            self.send_header("X-Error-Code", "GatedRepo")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if path.startswith("/api/models/owner/model"):
            siblings = [{"rfilename": "config.json"}]  # cut, as those of a very large repository are
            content = json.dumps({"id": "owner/model", "sha": COMMIT, "siblings": siblings}).encode()
            if "/tree/" in path:
                folder = {"type": "directory", "path": "sub", "oid": "2" * 40}
                content = json.dumps([folder, *(listing(*file) for file in FILES.items())]).encode()
            kind = "application/json"
        elif name in FILES and name not in self.server.refused:
            if body:
                self.server.asked.append(name)
            content, kind = self.server.sent[name], "application/octet-stream"
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if name in FILES else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def endpoint(server: Server) -> str:
    return server.url


def fetch(
    endpoint: str, output: Path, variables: dict[str, str] | None = None, **changed: object
) -> subprocess.CompletedProcess[str]:
    """Run the stage's script: the client reads its address from the environment once, when it is imported."""
    config = {"hub": "owner/model", "kind": "model", "revision": "main", "patterns": [], "files": {}, **changed}
    command = [sys.executable, "workflow/scripts/fetch_source.py", "--config", json.dumps(config)]
    environment = {
        **{name: value for name, value in os.environ.items() if name != "HF_TOKEN"},
        "HF_ENDPOINT": endpoint,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(output.parent.parent / "home"),
        **(variables or {}),
    }
    return subprocess.run(
        [*command, "--output", str(output)], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def test_a_repository_is_fetched_whole_and_its_commit_recorded(endpoint: str, tmp_path: Path) -> None:
    output = tmp_path / "source" / "manifest.json"
    done = fetch(endpoint, output, revision=None)
    assert done.returncode == 0, done.stderr
    manifest = json.loads(output.read_text())
    assert manifest["source"] == {"hub": "owner/model", "kind": "model", "revision": None, "commit": COMMIT}
    assert {name: (output.parent / name).read_bytes() for name in manifest["files"]} == FILES


def test_patterns_limit_the_files(endpoint: str, tmp_path: Path) -> None:
    output = tmp_path / "source" / "manifest.json"
    assert fetch(endpoint, output, patterns=["*.json"]).returncode == 0
    assert set(json.loads(output.read_text())["files"]) == {"config.json"}


def test_a_wrong_hash_is_refused(endpoint: str, tmp_path: Path) -> None:
    output = tmp_path / "source" / "manifest.json"
    done = fetch(endpoint, output, files={"config.json": "0" * 64})
    assert "SHA-256" in done.stderr
    assert not output.parent.exists()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("model.safetensors", b"WEIGHTS" * 1000, "SHA-256 is "),
        ("config.json", b"[]", "git blob id is "),
        ("sub/readme.md", b"", "0 bytes, owner/model lists 4"),
    ],
)
def test_a_file_that_is_not_the_listed_one_is_refused_and_fetched_again(
    server: Server, tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    output = tmp_path / "source" / "manifest.json"
    server.sent[name] = content
    done = fetch(server.url, output)
    assert done.returncode == 1
    assert f"{name}: wrong checksum: {reason}" in done.stderr
    assert "run again" in done.stderr
    assert not output.parent.exists()
    server.sent, server.asked = dict(FILES), []
    assert fetch(server.url, output).returncode == 0
    assert server.asked == [name]
    assert (output.parent / name).read_bytes() == FILES[name]


@pytest.mark.parametrize("variable", ["HF_HOME", "HF_TOKEN_PATH"])
def test_a_stored_login_is_not_used(server: Server, tmp_path: Path, variable: str) -> None:
    stored = tmp_path / "login" / "token"
    stored.parent.mkdir()
    stored.write_text("hf_STORED")
    place = stored.parent if variable == "HF_HOME" else stored
    done = fetch(server.url, tmp_path / "source" / "manifest.json", {variable: str(place)})
    assert done.returncode == 0, done.stderr
    assert server.tokens == {None}


@pytest.mark.parametrize("trouble", ["unknown repository", "no server"])
def test_what_cannot_be_had_is_said(endpoint: str, tmp_path: Path, trouble: str) -> None:
    if trouble == "no server":
        endpoint = "http://127.0.0.1:9"
    done = fetch(endpoint, tmp_path / "source" / "manifest.json", hub="owner/nothing")
    assert done.returncode == 1
    assert "error: cannot fetch owner/nothing" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "source").exists()


def test_the_next_run_asks_only_for_what_is_missing(server: Server, tmp_path: Path) -> None:
    output, secret = tmp_path / "source" / "manifest.json", {"HF_TOKEN": "hf_SECRET"}
    server.refused = {"model.safetensors"}
    first = fetch(server.url, output, secret)
    assert "error: cannot fetch owner/model" in first.stderr
    assert not output.parent.exists()
    left = tmp_path / ".source.part" / "files" / ".cache" / "huggingface" / "download" / "x.1.incomplete"
    left.write_bytes(b"of a killed run")
    fetch(server.url, output, secret)
    assert not left.exists()
    assert set(server.asked) == {"config.json", "sub/readme.md"}
    server.refused = set()
    server.asked.clear()
    second = fetch(server.url, output, secret)
    assert second.returncode == 0, second.stderr
    assert server.asked == ["model.safetensors"]
    assert set(json.loads(output.read_text())["files"]) == set(FILES)
    assert [path.name for path in output.parent.iterdir() if path.name.startswith(".")] == []
    assert not (tmp_path / ".source.part").exists()
    assert server.tokens == {"Bearer hf_SECRET"}
    assert "hf_SECRET" not in first.stderr + second.stderr + output.read_text()


@pytest.mark.parametrize(
    ("gated", "variables", "changed", "message"),
    [
        (True, {}, {}, "gated: accept its conditions on its page, and set HF_TOKEN"),
        (False, {"HF_HUB_OFFLINE": "1"}, {}, "offline mode is on: unset HF_HUB_OFFLINE"),
        (False, {}, {"patterns": ["*.gguf"]}, "no file of owner/model matches *.gguf\n    -> it has config.json"),
    ],
)
def test_each_trouble_has_its_advice(
    server: Server, tmp_path: Path, gated: bool, variables: dict[str, str], changed: dict[str, object], message: str
) -> None:
    server.gated = gated
    done = fetch(server.url, tmp_path / "source" / "manifest.json", variables, **changed)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob(".source.part"))


def test_a_second_fetch_takes_large_files_over_from_the_first(server: Server, tmp_path: Path) -> None:
    output = tmp_path / "source" / "manifest.json"
    for _ in range(2):
        assert fetch(server.url, output).returncode == 0
        output.unlink()  # as snakemake does before it runs the rule again
    assert server.asked.count("model.safetensors") == 1
    (output.parent / "model.safetensors").write_bytes(b"damaged")
    assert fetch(server.url, output).returncode == 0
    assert (output.parent / "model.safetensors").read_bytes() == FILES["model.safetensors"]
