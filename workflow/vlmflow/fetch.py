"""The fetch stage: files from a Python package or an address, checked by their SHA-256."""

from __future__ import annotations

import difflib
import http.client
import logging
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from tqdm import tqdm

from vlmflow.errors import UserError
from vlmflow.files import MANIFEST, sha256_file, staged_directory, write_manifest
from vlmflow.hub import fetch_hub

_log = logging.getLogger(__name__)
_WAITS = (2.0, 8.0)  # seconds before the second and the third try
_TIMEOUT = 60.0  # seconds without a byte
_BLOCK = 1 << 20
_INTERRUPTIONS = (http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)
_OFFLINE = (
    "check the network and the package index or address; on a machine without network, run `snakemake --until "
    "fetch_source` on one that has it, then copy results/sources"
)


def fetch_source(config: dict[str, Any], output: Path) -> None:
    """Download the files of one source into the folder of ``output``, their manifest.

    ``config`` holds exactly one of ``pypi`` (``NAME==VERSION``: members of its wheel), ``url`` (one file; http, https
    or file) and ``hub`` (a repository: :func:`vlmflow.hub.fetch_hub`), and ``files``: name -> expected SHA-256, or None
    to record it only. Raises :class:`UserError` and leaves nothing behind when a file cannot be had or is not the
    expected one.
    """
    fetchers = {"pypi": _fetch_wheel, "url": _fetch_url, "hub": None}
    kinds = [kind for kind in fetchers if kind in config]
    if len(kinds) != 1:
        raise UserError(f"a source needs exactly one of {', '.join(fetchers)}", f"this one has {', '.join(config)}")
    files: dict[str, str | None] = config.get("files") or {}
    for name in files:
        _check_name(name)
    with staged_directory(output.parent) as directory:
        fetch = fetchers[kinds[0]]
        facts = {kinds[0]: config[kinds[0]]}
        if fetch is None:
            facts = fetch_hub(config, directory)
        else:
            fetch(config[kinds[0]], files, directory)
        for name, expected in files.items():
            _check_hash(directory / name, name, expected)
        write_manifest(directory, source=facts)


def _check_name(name: str) -> None:
    """A name must lie inside the folder whatever it is joined to."""
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in name:
        raise UserError("not a relative path inside the source", "name the file without '..'", field=f"files: {name!r}")
    if path.as_posix() != name or name in (MANIFEST, "."):
        raise UserError("this name cannot be used", f"write it as NAME or FOLDER/NAME, not {MANIFEST}", field=name)


def _check_hash(path: Path, name: str, expected: str | None) -> None:
    if not path.is_file():
        raise UserError("not in the source", "correct the name under `files`", file=name)
    found = sha256_file(path)
    if expected is None:
        _log.warning("%s is not checked; to pin it, write its SHA-256 into the configuration: %s", name, found)
    elif found != expected:
        raise UserError(
            f"SHA-256 is {found}, expected {expected}",
            "the publisher changed the file or the download is damaged; run again, and if it stays so, compare with "
            "the publisher's page before you change the expected value in the configuration",
            file=name,
        )


# --- members of a wheel ----------------------------------------------------------------------------------------------


def _fetch_wheel(requirement: str, files: Mapping[str, str | None], directory: Path) -> None:
    if not files:
        raise UserError(f"no file of {requirement} is named", "list under `files` what to take out of the wheel")
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        _download_wheel(requirement, Path(folder))
        wheel = next(Path(folder).glob("*.whl"))
        try:
            with zipfile.ZipFile(wheel) as archive:
                for name in files:
                    _extract(archive, name, wheel.name, directory)
        except zipfile.BadZipFile as error:
            raise UserError(f"damaged archive: {error}", "run again", file=wheel.name) from error


def _download_wheel(requirement: str, folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps", "--only-binary=:all:"]
    # Descriptor 2: pip's progress belongs to the log, and standard output stays clean.
    done = subprocess.run([*pip, "--dest", folder, "--", requirement], stdout=2, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        tail = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise UserError(f"pip cannot download {requirement}:\n{tail}", _OFFLINE)


def _extract(archive: zipfile.ZipFile, name: str, wheel: str, directory: Path) -> None:
    try:
        member = archive.getinfo(name)
    except KeyError:
        near = difflib.get_close_matches(name, archive.namelist(), n=3)
        advice = f"did you mean {' or '.join(near)}?" if near else f"list its files: python -m zipfile -l {wheel}"
        raise UserError(f"no such file in {wheel}", advice, field=f"files: {name}") from None
    target = directory / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(member) as source, target.open("wb") as sink:
        shutil.copyfileobj(source, sink, _BLOCK)


# --- one file at an address ------------------------------------------------------------------------------------------


def _fetch_url(url: str, files: Mapping[str, str | None], directory: Path) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https", "file"):
        raise UserError(f"cannot fetch from '{parts.scheme}:'", "use an http, https or file address", field="url")
    if parts.password is not None:
        raise UserError("the address holds a password", "a secret never belongs into a configuration", field="url")
    if len(files) != 1:
        raise UserError(f"a url brings one file, but {len(files)} are named", "one source per file", field="files")
    name, expected = next(iter(files.items()))
    target = directory / name
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    download = _Download(url, part, name, unchecked=expected is None)
    for wait in (*_WAITS, None):
        interruption = download.attempt()
        if interruption is None:
            part.replace(target)
            return
        if wait is not None:
            _log.warning("%s: %s; next try in %.0f s", url, interruption, wait)
            time.sleep(wait)
    raise UserError(f"download failed {len(_WAITS) + 1} times: {interruption}", _OFFLINE, file=url)


class _Download:
    """One file on its way to ``part``; a further attempt goes on where the last one was cut, if the server can."""

    def __init__(self, url: str, part: Path, name: str, unchecked: bool) -> None:
        self.url, self.part, self.name, self.unchecked = url, part, name, unchecked
        self.version: str | None = None  # the server's mark of the content that the part is of

    def attempt(self) -> str | None:
        """Fetch what is missing; returns None when the file is whole, or what interrupted it."""
        request = urllib.request.Request(self.url)
        have = self.part.stat().st_size if self.part.exists() and self.version else 0
        if have and self.version:
            request.add_header("Range", f"bytes={have}-")
            request.add_header("If-Range", self.version)
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
                return self._receive(response, have)
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 416, 429):
                advice = "correct `url`; files behind a login have to be downloaded by hand and given as a file address"
                raise UserError(f"the server answers {error.code} {error.reason}", advice, file=self.url) from error
            self.version = None
            return f"the server answers {error.code} {error.reason}"
        except urllib.error.URLError as error:
            if isinstance(error.reason, FileNotFoundError | IsADirectoryError | PermissionError):
                raise UserError(f"cannot read: {error.reason.strerror}", "correct `url`", file=self.url) from error
            return str(error.reason)
        except _INTERRUPTIONS as error:
            return str(error) or type(error).__name__

    def _receive(self, response: Any, have: int) -> str | None:
        headers = response.headers
        resumed = response.status == 206
        if resumed and not headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            self.version = None
            return "the server resumed at another place than asked for"
        have = have if resumed else 0
        etag = headers.get("ETag", "W/")
        self.version = headers.get("Last-Modified") if etag.startswith("W/") else etag
        length = headers.get("Content-Length", "")
        chunked = headers.get("Transfer-Encoding", "").lower() == "chunked"  # a cut one raises IncompleteRead
        if self.unchecked and not length.isdigit() and not chunked:
            raise UserError(
                "the server does not say how long the file is, so that a cut download would look whole",
                "give the file's SHA-256 in the configuration", file=self.url,
            )  # fmt: skip
        total = have + int(length) if length.isdigit() else None
        with self.part.open("ab" if resumed else "wb") as sink:
            _copy(response, sink, self.name, have, total)
            got = sink.tell()
        return None if total in (None, got) else f"{got} of {total} bytes arrived"


def _copy(source: Any, sink: BinaryIO, name: str, have: int, total: int | None) -> None:
    """Copy to the end, with a bar when a person looks on."""
    bar = tqdm(desc=name, initial=have, total=total, unit="B", unit_scale=True, disable=not sys.stderr.isatty())
    with bar:
        while block := source.read(_BLOCK):
            sink.write(block)
            bar.update(len(block))
