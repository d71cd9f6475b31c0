"""The real ModelScope client against a local server that speaks its protocol."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from requests.cookies import RequestsCookieJar

ROOT = Path(__file__).parents[2]
OLD, NEW = "a" * 40, "b" * 40
BLOCK = 1 << 18
FILES = {
    "configuration.json": b"{}",
    "model.safetensors": hashlib.shake_128(b"weights").digest(16 * BLOCK),
    "sub/readme.md": b"text",
}


class Server(ThreadingHTTPServer):
    """owner/name as a model and a data set; ``status`` refuses everything, ``pause`` is seconds between blocks.

    ``many`` is how many files a folder of that name holds, of which the server lists the first 3000 at most.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status, self.pause, self.many = 200, 0.0, 0
        self.asked: list[tuple[str, str, str | None]] = []
        self.tokens: set[str | None] = set()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        self.server.tokens.add(self.headers.get("Authorization"))
        route = parts.path.removeprefix("/api/v1/")
        if self.server.status != 200:
            self._json({"Code": 10000, "Message": "refused", "Success": False}, self.server.status)
        elif route == "models/owner/name/repo/files":
            self._json({"Code": 200, "Success": True, "Data": {"Files": self._cut_listing(query)}})
        elif route == "datasets/owner/name/repo/tree":
            files = self._listing() if query.get("PageNumber", "1") == "1" else []
            self._json({"Code": 200, "Success": True, "Data": {"Files": files, "TotalCount": len(files)}})
        elif route in ("models/owner/name/repo", "datasets/owner/name/repo"):
            self._file(query)
        else:
            self._json({"Code": 10010205001, "Message": "not found", "Success": False}, 404)

    def _cut_listing(self, query: dict[str, str]) -> list[dict[str, Any]]:
        names = (f"many/{index}" for index in range(self.server.many))
        many = [{"Path": "many", "Type": "tree"}, *({"Path": name, "Type": "blob"} for name in names)]
        entries = [*self._listing(), *(many if self.server.many else [])]
        root = query.get("Root", "")
        below = [entry for entry in entries if not root or entry["Path"].startswith(f"{root}/")]
        if query["Recursive"] != "True":
            below = [entry for entry in below if "/" not in entry["Path"].removeprefix(f"{root}/")]
        return below[:3000]

    def _listing(self) -> list[dict[str, Any]]:
        folder = {"Path": "sub", "Type": "tree", "Size": 0, "Revision": NEW, "CommittedDate": 9}
        return [folder] + [
            {
                "Path": name, "Name": name.rsplit("/")[-1], "Type": "blob", "Size": len(content),
                "Sha256": hashlib.sha256(content).hexdigest(), "Revision": NEW if "json" in name else OLD,
                "CommittedDate": 2 if "json" in name else 1,
            }
            for name, content in FILES.items()
        ]  # fmt: skip

    def _file(self, query: dict[str, str]) -> None:
        asked = self.headers.get("Range")
        self.server.asked.append((query["FilePath"], query["Revision"], asked))
        content = FILES[query["FilePath"]]
        start = int(asked[6:].split("-")[0]) if asked else 0
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        for place in range(start, len(content), BLOCK):
            try:
                self.wfile.write(content[place : place + BLOCK])
            except OSError:  # the client was killed
                return
            time.sleep(self.server.pause)

    def _json(self, value: Any, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


def start(
    server: Server | None, output: Path, variables: dict[str, str] | None = None, **changed: object
) -> subprocess.Popen[str]:
    """Start the stage's script with a home of its own, in which an earlier login left a token."""
    login = output.parent.parent / "home" / ".modelscope" / "credentials"
    login.mkdir(parents=True, exist_ok=True)
    jar = RequestsCookieJar()
    jar.set("m_session_id", "ms-STORED", expires=int(time.time()) + 1000)
    (login / "cookies").write_bytes(pickle.dumps(jar))
    environment = {
        **os.environ,
        "HOME": str(output.parent.parent / "home"),
        "MODELSCOPE_ENDPOINT": f"http://127.0.0.1:{server.server_port if server else 9}",
        "MODELSCOPE_REPO_TREE_PAGE_MAX_ATTEMPTS": "1",
        "MODELSCOPE_API_MAX_RETRIES": "1",
        "MODELSCOPE_DOWNLOAD_CHUNK_SIZE_MB": "1",
        "no_proxy": "127.0.0.1",
        **(variables or {}),
    }
    config = {"modelscope": "owner/name", "kind": "model", "revision": None, "patterns": [], "files": {}, **changed}
    command = [sys.executable, "workflow/scripts/fetch_source.py", "--config", json.dumps(config)]
    return subprocess.Popen(
        [*command, "--output", str(output)], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )


def fetch(*arguments: Any, **changed: Any) -> tuple[int, str]:
    process = start(*arguments, **changed)
    errors = process.communicate(timeout=60)[1]
    return process.returncode, errors


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_a_repository_is_fetched_and_its_commit_recorded(server: Server, tmp_path: Path, kind: str) -> None:
    output = tmp_path / "source" / "manifest.json"
    status, errors = fetch(server, output, {"MODELSCOPE_API_TOKEN": "ms-SECRET"}, kind=kind, revision="v1")
    assert status == 0, errors
    manifest = json.loads(output.read_text())
    assert manifest["source"] == {"modelscope": "owner/name", "kind": kind, "revision": "v1", "commit": NEW}
    assert {name: (output.parent / name).read_bytes() for name in manifest["files"]} == FILES
    assert {revision for _, revision, _ in server.asked} == {"v1"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "source"]
    assert "Bearer ms-SECRET" in server.tokens
    assert "ms-SECRET" not in errors + output.read_text()
    server.asked.clear()
    (output.parent / "sub/readme.md").write_text("damaged")
    assert fetch(server, output, kind=kind, revision="v1")[0] == 0
    assert [name for name, _, _ in server.asked] == ["sub/readme.md"]  # the rest is taken over


def test_patterns_limit_the_files_and_a_stored_login_is_not_used(server: Server, tmp_path: Path) -> None:
    output = tmp_path / "source" / "manifest.json"
    status, errors = fetch(server, output, patterns=["*.json"])
    assert status == 0, errors
    assert {name for name, _, _ in server.asked} == {"configuration.json"}
    assert {revision for _, revision, _ in server.asked} == {"master"}
    assert server.tokens == {None}


@pytest.mark.parametrize("patterns", [[], ["*.json"], ["many/*"], ["many/1", "many/3100"]])
def test_a_cut_listing_is_not_taken_for_whole(server: Server, tmp_path: Path, patterns: list[str]) -> None:
    server.many = 3001
    status, errors = fetch(server, tmp_path / "source" / "manifest.json", patterns=patterns)
    assert status == 1
    assert "error: incomplete listing: the server does not list all files of owner/name\n    -> name `pat" in errors
    assert not server.asked
    assert not (tmp_path / "source").exists()


def test_parts_of_a_repository_that_cannot_be_listed_are_fetched(server: Server, tmp_path: Path) -> None:
    server.many = 3001
    output = tmp_path / "source" / "manifest.json"
    status, errors = fetch(server, output, patterns=["configuration.json", "sub/*"])
    assert status == 0, errors
    assert set(json.loads(output.read_text())["files"]) == {"configuration.json", "sub/readme.md"}


def test_after_a_kill_only_missing_bytes_are_asked_for(server: Server, tmp_path: Path) -> None:
    output = tmp_path / "source" / "manifest.json"
    server.pause = 0.1
    process = start(server, output)
    cut = tmp_path / ".source.part" / "files" / "model.safetensors.incomplete"
    deadline = time.monotonic() + 30
    while (not cut.exists() or cut.stat().st_size < 4 * BLOCK) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    have = cut.stat().st_size
    assert not output.parent.exists()
    server.pause = 0.0
    server.asked.clear()
    status, errors = fetch(server, output)
    assert status == 0, errors
    assert server.asked == [("model.safetensors", "master", f"bytes={have}-")]
    assert set(json.loads(output.read_text())["files"]) == set(FILES)


@pytest.mark.parametrize(
    ("status", "variables", "changed", "message"),
    [
        (401, {}, {}, "set MODELSCOPE_API_TOKEN to a token of that account (MODELSCOPE_API_TOKEN is not set)"),
        (403, {"MODELSCOPE_API_TOKEN": "ms-SECRET"}, {}, "(MODELSCOPE_API_TOKEN is set)"),
        (404, {}, {}, "check the name, `kind` and `revision`"),
        (0, {}, {}, "check the network (another server: MODELSCOPE_ENDPOINT)"),
        (200, {"HF_HUB_OFFLINE": "1"}, {}, "cannot fetch owner/name: offline mode is on"),
        (200, {}, {"patterns": ["*.gguf"]}, "no file of owner/name matches *.gguf\n    -> it has configuration.json"),
    ],
)
def test_each_trouble_has_its_advice(
    server: Server, tmp_path: Path, status: int, variables: dict[str, str], changed: dict[str, Any], message: str
) -> None:
    server.status = status
    code, errors = fetch(server if status else None, tmp_path / "source" / "manifest.json", variables, **changed)
    assert code == 1
    assert message in errors
    assert "Traceback" not in errors
    assert "SECRET" not in errors
    assert not (tmp_path / "source").exists()
