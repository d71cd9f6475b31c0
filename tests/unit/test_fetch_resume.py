"""A run that fails or is killed leaves no source, and the next asks only for what is missing."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from vlmflow.errors import UserError
from vlmflow.fetch import fetch_source
from vlmflow.fetch import http as fetch
from vlmflow.files import read_manifest

ROOT = Path(__file__).parents[2]
BLOCK = 1 << 18
FILES = {f"part {i}/{i}.bin": hashlib.shake_128(bytes([i])).digest(8 * BLOCK) for i in range(6)}


class Folder(ThreadingHTTPServer):
    """Serves FILES below /data/ with ranges; ``pause`` is the time between blocks in seconds."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.version, self.pause = dict(FILES), "1", 0.0
        self.asked: list[tuple[str, str | None]] = []
        self.gate: threading.Barrier | None = None
        self.url = f"http://127.0.0.1:{self.server_port}/data/"


class Handler(BaseHTTPRequestHandler):
    server: Folder

    def do_GET(self) -> None:
        name = self.path.removeprefix("/data/").removeprefix("./").replace("%20", " ")
        asked = self.headers.get("Range")
        self.server.asked.append((name, asked))
        if self.server.gate:
            self.server.gate.wait(5)
        if name not in self.server.files:
            self.send_error(404)
            return
        content, etag = self.server.files[name], f'"{self.server.version}"'
        start = int(asked[6:-1]) if asked and self.headers.get("If-Range", etag) == etag else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", etag)
        self.end_headers()
        for place in range(start, len(content), BLOCK):
            try:
                self.wfile.write(content[place : place + BLOCK])
            except OSError:  # the client was killed
                return
            time.sleep(self.server.pause)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    monkeypatch.setattr(fetch, "_WAITS", (0.0, 0.0))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Folder() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


def config_of(folder: Folder) -> dict[str, Any]:
    return {"url": folder.url, "files": {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}}


def content(output: Path) -> dict[str, bytes]:
    return {name: (output.parent / name).read_bytes() for name in read_manifest(output)["files"]}


def test_a_folder_is_fetched_four_files_at_a_time(folder: Folder, tmp_path: Path) -> None:
    folder.files = {name: FILES[name] for name in list(FILES)[:4]}
    folder.gate = threading.Barrier(4)  # breaks unless four requests are on their way at once
    output = tmp_path / "source" / "manifest.json"
    fetch_source({"url": folder.url, "files": dict.fromkeys(folder.files)}, output)
    assert content(output) == folder.files
    assert read_manifest(output)["source"] == {"url": folder.url}
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def arrived(state: Path) -> int:
    """Bytes of unfinished files; one may be finished, and gone, while they are counted."""
    total = 0
    for path in state.glob("[!.]*.part"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def killed_in_the_middle(folder: Folder, output: Path, config: dict[str, Any]) -> Path:
    """Start the stage's script and kill it when some bytes of several files are there; returns the partial folder."""
    folder.pause = 0.05
    command = [sys.executable, "workflow/scripts/fetch_source.py", "--config", json.dumps(config)]
    process = subprocess.Popen([*command, "--output", str(output)], cwd=ROOT, stderr=subprocess.DEVNULL)
    state = output.parent.with_name(".source.part") / "state"
    deadline = time.monotonic() + 20
    while arrived(state) < 4 * BLOCK and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    folder.pause = 0.0
    return state


def test_after_a_kill_only_missing_bytes_are_asked_for(folder: Folder, tmp_path: Path) -> None:
    output = tmp_path / "source" / "manifest.json"
    state = killed_in_the_middle(folder, output, config_of(folder))
    assert not output.parent.exists()
    have = sorted(path.stat().st_size for path in state.glob("[!.]*.part") if path.stat().st_size)
    whole = list(state.with_name("files").rglob("*.bin"))
    assert have
    folder.asked.clear()
    fetch_source(config_of(folder), output)
    assert content(output) == FILES
    resumed = sorted(int(asked[6:-1]) for _, asked in folder.asked if asked)
    assert resumed == [size for size in have if size < 8 * BLOCK]
    assert len(folder.asked) == len(FILES) - len(whole) - have.count(8 * BLOCK)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_another_version_is_fetched_from_the_start(folder: Folder, tmp_path: Path) -> None:
    output, config = tmp_path / "source" / "manifest.json", config_of(folder)
    state = killed_in_the_middle(folder, output, config)
    begun = {path.name for path in state.glob("[!.]*.part") if path.stat().st_size}
    whole = {path.relative_to(state.with_name("files")).as_posix() for path in state.with_name("files").rglob("*.bin")}
    folder.version, folder.files = "2", {name: data[::-1] for name, data in FILES.items()}
    fetch_source({**config, "files": dict.fromkeys(FILES)}, output)
    assert begun
    assert content(output) == {name: (FILES if name in whole else folder.files)[name] for name in FILES}


def test_an_edited_source_takes_nothing_from_the_one_before(folder: Folder, tmp_path: Path) -> None:
    output, config = tmp_path / "source" / "manifest.json", config_of(folder)
    del folder.files[list(FILES)[5]]
    with pytest.raises(UserError, match="404"):
        fetch_source(config, output)
    assert list((tmp_path / ".source.part" / "files").rglob("*.bin"))
    folder.files, _ = dict(FILES), folder.asked.clear()
    fetch_source({**config, "url": folder.url + "./"}, output)
    assert sorted(name.removeprefix("./") for name, _ in folder.asked) == sorted(FILES)


def test_one_missing_file_is_named_and_the_others_stay(folder: Folder, tmp_path: Path) -> None:
    output, config = tmp_path / "source" / "manifest.json", config_of(folder)
    gone = list(FILES)[5]
    del folder.files[gone]
    with pytest.raises(UserError, match=r"part%205/5\.bin: the server answers 404[\s\S]*names under `files`"):
        fetch_source(config, output)
    finished = len(list((tmp_path / ".source.part" / "files").rglob("*.bin")))
    assert finished and not output.parent.exists()
    folder.files, _ = dict(FILES), folder.asked.clear()
    fetch_source(config, output)
    assert content(output) == FILES
    assert len(folder.asked) <= len(FILES) - finished


def test_a_wrong_file_is_fetched_again_and_no_other(folder: Folder, tmp_path: Path) -> None:
    output, config = tmp_path / "source" / "manifest.json", config_of(folder)
    bad = list(FILES)[2]
    folder.files[bad] = FILES[bad][::-1]
    with pytest.raises(UserError, match="expected"):
        fetch_source(config, output)
    folder.files, _ = dict(FILES), folder.asked.clear()
    fetch_source(config, output)
    assert folder.asked == [(bad, None)]


def test_a_second_fetch_takes_over_what_is_pinned_and_unchanged(folder: Folder, tmp_path: Path) -> None:
    output, config = tmp_path / "source" / "manifest.json", config_of(folder)
    config["files"][list(FILES)[1]] = None
    fetch_source(config, output)
    output.unlink()  # as snakemake does before it runs the rule again
    (output.parent / next(iter(FILES))).write_bytes(b"damaged")
    folder.asked.clear()
    fetch_source(config, output)
    assert sorted(name for name, _ in folder.asked) == list(FILES)[:2]
    assert content(output) == FILES


def test_a_full_disk_is_said_and_what_arrived_is_kept(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(fetch, "_copy", full)
        with pytest.raises(UserError, match=r"no space left on the disk[\s\S]*kept"):
            fetch_source(config_of(folder), tmp_path / "source" / "manifest.json")
    assert not (tmp_path / "source").exists()


@pytest.mark.parametrize(
    ("status", "advice"), [(401, "given as a `path`"), (403, "given as a `path`"), (404, "correct `url`")]
)
def test_advice_per_status(status: int, advice: str) -> None:
    assert advice in fetch._advice(status)


def test_a_signed_link_is_hidden(folder: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = "x?id=7&X-Amz-Signature=SECRET&token=SECRET"
    folder.files[name] = b"content"
    output = tmp_path / "source" / "manifest.json"
    fetch_source({"url": folder.url + name, "files": {"x": None}}, output)
    assert read_manifest(output)["source"]["url"].endswith("x?id=7&X-Amz-Signature=...&token=...")
    del folder.files[name]
    with pytest.raises(UserError, match="404") as error:
        fetch_source({"url": folder.url + name, "files": {"x": None}}, output)
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert b"SECRET" not in b"".join(written) + caplog.text.encode() + str(error.value).encode()
