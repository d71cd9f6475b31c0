"""Files at http, https and file addresses: checked to be whole, retried, continued where they were cut."""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import logging
import ssl
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any, BinaryIO

from tqdm import tqdm

from vlmflow.errors import UserError
from vlmflow.fetch.local import reuse
from vlmflow.fetch.partial import Fetched, Partial
from vlmflow.files import write_json

OFFLINE = (
    "check the network and the package index or address; on a machine without network, run `snakemake --until "
    "fetch_source` on one that has it, then copy results/sources"
)
_log = logging.getLogger(__name__)
_WAITS = (2.0, 8.0)  # seconds before the second and the third try
_TIMEOUT = 60.0  # seconds without a byte
_BLOCK = 1 << 18
_PARALLEL = 4
_INTERRUPTIONS = (http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)
_UNREACHABLE = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN)
_SECRET = ("token", "key", "secret", "password", "sig", "credential", "auth", "policy")


def fetch_url(config: dict[str, Any], partial: Partial) -> Fetched:
    """Download the one file of ``url``, or every one of ``files`` below it when it ends in ``/``, several at a time."""
    url, files = config["url"], config.get("files") or {}
    addresses = _addresses(url, list(files))
    reuse(partial, {name: sha256 for name, sha256 in files.items() if sha256})
    stop = threading.Event()
    with ThreadPoolExecutor(_PARALLEL) as pool:
        jobs = [
            pool.submit(Download(address, partial, name, files[name] is None, stop).run)
            for name, address in addresses.items()
        ]
        try:
            done, _ = wait(jobs, return_when=FIRST_EXCEPTION)
        finally:  # an interrupt from the keyboard too ends what runs, and keeps what arrived
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
        for job in done:
            job.result()
    return Fetched(addresses, {"url": shown(url)})


def _addresses(url: str, names: list[str]) -> dict[str, str]:
    """Name -> address."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https", "file"):
        raise UserError(f"cannot fetch from '{parts.scheme}:'", "use an http, https or file address", field="url")
    if "@" in parts.netloc:
        raise UserError(
            "the address holds a password or token", "a secret never belongs into a configuration", field="url"
        )
    if parts.path.endswith("/") and not parts.query:
        if not names:
            raise UserError("no file of the folder is named", "list under `files` what to take", field="files")
        return {name: url + urllib.parse.quote(name) for name in names}
    if len(names) != 1:
        advice = "one source per file, or a url that ends in '/' for the folder that holds them"
        raise UserError(f"a url brings one file, but {len(names)} are named", advice, field="files")
    return {names[0]: url}


def shown(url: str) -> str:
    """The address without the values of query keys that look like secrets (signed links), for logs and manifests."""
    parts = urllib.parse.urlsplit(url)
    pairs = [pair.partition("=") for pair in parts.query.split("&")]
    hidden = [
        key + mark + ("..." if any(word in key.lower() for word in _SECRET) else text) for key, mark, text in pairs
    ]
    return urllib.parse.urlunsplit(parts._replace(query="&".join(hidden)))


class Download:
    """One file on its way. What arrived and the server's mark of its version stay in ``partial.state`` until it is
    whole, so that a further attempt, or a later run, asks for the missing bytes only."""

    def __init__(self, url: str, partial: Partial, name: str, unchecked: bool, stop: threading.Event) -> None:
        self.url, self.name, self.unchecked, self.stop = url, name, unchecked, stop
        key = hashlib.sha256(url.encode() + b"\0" + name.encode()).hexdigest()[:16]
        self.target = partial.files / name
        self.part, self.sidecar = partial.state / f"{key}.part", partial.state / f"{key}.json"
        self.version, self.total = self._read_sidecar()

    def run(self) -> None:
        """Bring the file to its final name; raises :class:`UserError` when it cannot be had."""
        if self.target.is_file():  # renamed when whole, by an earlier run
            return
        self.target.parent.mkdir(parents=True, exist_ok=True)
        for seconds in (*_WAITS, None):
            interruption = self.attempt()
            if interruption is None:
                self.part.replace(self.target)
                self.sidecar.unlink(missing_ok=True)
                return
            if self.stop.is_set():
                return
            if seconds is not None:
                _log.warning("%s: %s; next try in %.0f s", shown(self.url), interruption, seconds)
                self.stop.wait(seconds)
        reason = f"download failed {len(_WAITS) + 1} times: {interruption}"
        raise UserError(reason, OFFLINE, file=shown(self.url))

    def attempt(self) -> str | None:
        """Fetch what is missing; returns None when the file is whole, or what interrupted it."""
        have = self.part.stat().st_size if self.part.exists() and self.version else 0
        if have and have == self.total:
            return None
        request = urllib.request.Request(self.url)
        if have and self.version:
            request.add_header("Range", f"bytes={have}-")
            request.add_header("If-Range", self.version)
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
                return self._receive(response, have)
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 416, 429):
                reason = f"the server answers {error.code} {error.reason}"
                raise UserError(reason, _advice(error.code), file=shown(self.url)) from error
            if error.code == 416:
                self.version = None
            return f"the server answers {error.code} {error.reason}"
        except urllib.error.URLError as error:
            if isinstance(error.reason, FileNotFoundError | IsADirectoryError | PermissionError):
                raise UserError(
                    f"cannot read: {error.reason.strerror}", "correct `url`", file=shown(self.url)
                ) from error
            return str(error.reason)
        except _INTERRUPTIONS as error:
            return str(error) or type(error).__name__
        except OSError as error:
            if error.errno not in _UNREACHABLE:  # such as a full disk
                raise
            return str(error)

    def _receive(self, response: Any, have: int) -> str | None:
        headers = response.headers
        resumed = response.status == 206
        if resumed and not headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            self.version = None
            return "the server resumed at another place than asked for"
        have = have if resumed else 0
        length = headers.get("Content-Length", "")
        chunked = headers.get("Transfer-Encoding", "").lower() == "chunked"  # a cut one raises IncompleteRead
        if self.unchecked and not length.isdigit() and not chunked:
            raise UserError(
                "the server does not say how long the file is, so that a cut download would look whole",
                "give the file's SHA-256 in the configuration", file=shown(self.url),
            )  # fmt: skip
        self.total = have + int(length) if length.isdigit() else None
        etag = headers.get("ETag", "W/")
        self.version = headers.get("Last-Modified") if etag.startswith("W/") else etag
        with self.part.open("ab" if resumed else "wb") as sink:
            # After the old bytes are gone and before new ones come: a kill never leaves bytes of another version.
            write_json(self.sidecar, {"version": self.version, "bytes": self.total})
            _copy(response, sink, self.name, have, self.total, self.stop)
            got = sink.tell()
        if self.stop.is_set() and got != self.total:
            return "stopped"
        return None if self.total in (None, got) else f"{got} of {self.total} bytes arrived"

    def _read_sidecar(self) -> tuple[str | None, int | None]:
        try:
            state = json.loads(self.sidecar.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None, None
        return state["version"], state["bytes"]


def _advice(status: int) -> str:
    if status in (401, 403):
        return "files behind a login have to be downloaded by hand and given as a `path`"
    return "correct `url` or the names under `files`"


def _copy(source: Any, sink: BinaryIO, name: str, have: int, total: int | None, stop: threading.Event) -> None:
    """Copy to the end or until stopped, with a bar when a person looks on."""
    bar = tqdm(desc=name, initial=have, total=total, unit="B", unit_scale=True, disable=not sys.stderr.isatty())
    with bar:
        while not stop.is_set() and (block := source.read(_BLOCK)):
            sink.write(block)
            bar.update(len(block))
