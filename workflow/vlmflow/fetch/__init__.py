"""The fetch stage: files from hubs, addresses, Python packages and the user's own folders, checked by their SHA-256."""

from __future__ import annotations

import functools
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlmflow.errors import UserError
from vlmflow.fetch.http import fetch_url
from vlmflow.fetch.hub import fetch_hub
from vlmflow.fetch.local import fetch_path
from vlmflow.fetch.modelscope import fetch_modelscope
from vlmflow.fetch.names import check_name, matches, pinned, some
from vlmflow.fetch.partial import Fetched, Partial, partial_directory, prune
from vlmflow.fetch.trouble import out_of_space
from vlmflow.fetch.unpack import unpack
from vlmflow.fetch.wheel import fetch_package, fetch_wheel
from vlmflow.files import MANIFEST, sha256_file, write_manifest
from vlmflow.fingerprint import fingerprint
from vlmflow.housekeeping.store import shared
from vlmflow.links import link_or_copy

_log = logging.getLogger(__name__)
_FETCHERS: dict[str, Callable[[dict[str, Any], Partial], Fetched]] = {
    "pypi": fetch_wheel,
    "url": fetch_url,
    "hub": fetch_hub,
    "modelscope": fetch_modelscope,
    "package": fetch_package,
    "path": fetch_path,
}


def fetch_source(config: dict[str, Any], output: Path, store: Path | None = None) -> None:
    """Download the files of one source into the folder of ``output``, their manifest.

    ``config`` is a node of ``sources`` (config.schema.yaml): exactly one of pypi, url, hub, modelscope, package and
    path; ``files``, name -> expected SHA-256 (None: recorded only), ``patterns``, and ``unpack``, the archives among
    them. The folder appears as a whole. Raises :class:`UserError` when a file cannot be had or is not the expected
    one; what arrived until then stays beside it in ``.NAME.part``, and the next call goes on from there. Where
    ``config`` leaves no doubt about the content, it is shared with other workflows through the folder ``store``.
    """
    kinds = [kind for kind in _FETCHERS if kind in config]
    if len(kinds) != 1:
        raise UserError(f"a source needs exactly one of {', '.join(_FETCHERS)}", f"this one has {', '.join(config)}")
    files: dict[str, str | None] = config.get("files") or {}
    for name in files:
        check_name(name)
    key = {"config": config, "code": fingerprint(Path(__file__))}
    fetch = functools.partial(_fetch, _FETCHERS[kinds[0]], config, files, output)
    shared(store if pinned(config) else None, "sources", key, output, fetch)


def _fetch(
    fetcher: Callable[[dict[str, Any], Partial], Fetched],
    config: dict[str, Any],
    files: dict[str, str | None],
    output: Path,
) -> None:
    try:
        with partial_directory(output.parent, config) as partial:
            fetched = fetcher(config, partial)
            prune(partial.files, fetched.names)
            for name, expected in files.items():
                _check_hash(partial.files / name, name, expected)
            folder, archives = _unpacked(config.get("unpack") or [], fetched, partial)
            if (folder / MANIFEST).exists():
                raise UserError(
                    f"a source cannot hold a file {MANIFEST}", "leave it out with `patterns`", file=MANIFEST
                )
            write_manifest(folder, source={**fetched.facts, **({"archives": archives} if archives else {})})
            if output.parent.exists():
                shutil.rmtree(output.parent)
            folder.replace(output.parent)
    except OSError as error:
        if out_of_space(error):
            advice = "free some or let `results` be on another disk, then run again: what arrived is kept"
            raise UserError("no space left on the disk", advice, file=output.parent) from error
        raise UserError(error.strerror or str(error), "correct this and run again", file=error.filename) from error


def _check_hash(path: Path, name: str, expected: str | None) -> None:
    if not path.is_file():
        raise UserError("not in the source", "correct the name under `files`", file=name)
    found = sha256_file(path)
    if expected is None:
        _log.warning("%s is not checked; to pin it, write its SHA-256 into the configuration: %s", name, found)
    elif found != expected:
        path.unlink()  # to be fetched again
        raise UserError(
            f"SHA-256 is {found}, expected {expected}",
            "the publisher changed the file or the download is damaged; run again, and if it stays so, compare with "
            "the publisher's page before you change the expected value in the configuration",
            file=name,
        )


def _unpacked(patterns: list[str], fetched: Fetched, partial: Partial) -> tuple[Path, dict[str, dict[str, Any]]]:
    """The folder of what was fetched, with the content of its archives in their place, and facts of the archives.

    It is made afresh beside the fetched files, so that a run that was killed here has nothing to clean up.
    """
    if not patterns:
        return partial.files, {}
    archives = [name for name in fetched.names if matches(name, patterns)]
    if not archives:
        raise UserError(f"no file matches `unpack`: {', '.join(patterns)}", f"there is {some(fetched.names)}")
    folder = partial.state.with_name("unpacked")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in set(fetched.names) - set(archives):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(partial.files / name, folder / name)
    facts = {}
    for name in archives:
        archive = partial.files / name
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        unpack(archive, (folder / name).parent)
        facts[name] = {"bytes": archive.stat().st_size, "sha256": sha256_file(archive)}
    return folder, facts
