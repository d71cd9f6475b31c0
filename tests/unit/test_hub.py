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


class Hub(BaseHTTPRequestHandler):
    """One model repository, owner/model, with the two routes that a download uses."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = self.path.split("?")[0]
        name = path.removeprefix(f"/owner/model/resolve/{COMMIT}/")
        if path.startswith("/api/models/owner/model"):
            siblings = [{"rfilename": file, "size": len(content)} for file, content in FILES.items()]
            content = json.dumps({"id": "owner/model", "sha": COMMIT, "siblings": siblings}).encode()
            if "/tree/" in path:
                content = json.dumps(
                    [{"type": "file", "path": f, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                     for f, c in FILES.items()]
                ).encode()  # fmt: skip
            kind = "application/json"
        elif name in FILES:
            content, kind = FILES[name], "application/octet-stream"
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
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


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def fetch(endpoint: str, output: Path, **changed: object) -> subprocess.CompletedProcess[str]:
    """Run the stage's script: the client reads its address from the environment once, when it is imported."""
    config = {"hub": "owner/model", "kind": "model", "revision": "main", "patterns": [], "files": {}, **changed}
    command = [sys.executable, "workflow/scripts/fetch_source.py", "--config", json.dumps(config)]
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(output.parent.parent),
    }
    return subprocess.run(
        [*command, "--output", str(output)], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def test_a_repository_is_fetched_whole_and_its_commit_recorded(endpoint: str, tmp_path: Path) -> None:
    output = tmp_path / "source" / "manifest.json"
    done = fetch(endpoint, output)
    assert done.returncode == 0, done.stderr
    manifest = json.loads(output.read_text())
    assert manifest["source"]["commit"] == COMMIT
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


@pytest.mark.parametrize("trouble", ["unknown repository", "no server"])
def test_what_cannot_be_had_is_said(endpoint: str, tmp_path: Path, trouble: str) -> None:
    if trouble == "no server":
        endpoint = "http://127.0.0.1:9"
    done = fetch(endpoint, tmp_path / "source" / "manifest.json", hub="owner/nothing")
    assert done.returncode == 1
    assert "error: cannot fetch owner/nothing" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "source").exists()
