"""Repositories of the Hugging Face hub, fetched whole or by patterns at one revision."""

from __future__ import annotations

import glob
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmflow.errors import UserError
from vlmflow.fetch.local import reuse
from vlmflow.fetch.names import select, unsafe
from vlmflow.fetch.partial import Fetched, Partial, start_anew_unless
from vlmflow.fetch.trouble import first_line, out_of_space
from vlmflow.files import sha256_file

if TYPE_CHECKING:
    from huggingface_hub import RepoFile


def fetch_hub(config: dict[str, Any], partial: Partial) -> Fetched:
    """Download ``config['hub']`` at ``revision`` (the default branch when None); the commit is recorded.

    ``kind`` is model or dataset, ``patterns`` limits the files. The token comes from HF_TOKEN and from nowhere else,
    another server from HF_ENDPOINT, and HF_HUB_OFFLINE is respected. Whole files of an earlier run are kept. Raises
    :class:`UserError` for a file that is not, byte for byte, the one that the server lists.
    """
    from huggingface_hub import HfApi, RepoFile, snapshot_download

    repository, revision, wanted = config["hub"], config.get("revision"), wanted_patterns(config)
    where = {"repo_id": repository, "repo_type": config.get("kind", "model")}
    token: str | bool = os.environ.get("HF_TOKEN", "").strip() or False  # False, unlike None, ignores a stored login
    try:
        api = HfApi(token=token)
        info = api.repo_info(**where, revision=revision)
        # Not info.siblings: the server cuts that list for very large repositories.
        tree = api.list_repo_tree(**where, revision=info.sha, recursive=True)
        listed = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
        names = chosen(repository, list(listed), wanted)
        start_anew_unless(partial, str(info.sha))
        reuse(partial, {name: pointer.sha256 for name in names if (pointer := listed[name].lfs)})
        for cut in partial.files.glob(".cache/huggingface/download/**/*.incomplete"):
            cut.unlink()  # of a killed run: the library begins a cut file anew, under another name
        snapshot_download(
            **where, revision=info.sha, allow_patterns=wanted or None, local_dir=partial.files, token=token
        )
    except UserError:
        raise
    except Exception as error:  # the client's, its transport's and the disk's have no common ancestor
        if out_of_space(error):
            raise
        raise UserError(f"cannot fetch {repository}: {first_line(error)}", _advice(error)) from error
    missing = [name for name in names if not (partial.files / name).is_file()]
    if missing:  # without a connection the client is content with what an earlier run left
        raise UserError(
            f"cannot fetch {repository}: {len(missing)} files are missing, such as {missing[0]}", "run again"
        )
    for name in names:
        _check(partial.files / name, listed[name], repository)
    facts = {"hub": repository, "kind": where["repo_type"], "revision": revision, "commit": info.sha}
    return Fetched(names, facts)


def _check(path: Path, listed: RepoFile, repository: str) -> None:
    """Compare size (bytes) and hash with the listing: SHA-256 of a large file (LFS), git blob id of any other."""
    size = path.stat().st_size
    if size != listed.size:
        trouble = f"{size} bytes, {repository} lists {listed.size}"
    elif listed.lfs:
        trouble = _difference("SHA-256", sha256_file(path), listed.lfs.sha256, repository)
    else:
        trouble = _difference("git blob id", _blob_id(path, size), listed.blob_id, repository)
    if trouble:
        path.unlink()  # to be fetched again
        advice = "the download is damaged: run again; if it stays so, check the server (HF_ENDPOINT) or proxy between"
        raise UserError(f"wrong checksum: {trouble}", advice, file=listed.path)


def _difference(algorithm: str, found: str, expected: str, repository: str) -> str:
    return "" if found == expected else f"{algorithm} is {found}, {repository} lists {expected}"


def _blob_id(path: Path, size: int) -> str:
    """What git calls a file of this content (SHA-1 over a header and the bytes), read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)).hexdigest()


def wanted_patterns(config: dict[str, Any]) -> list[str]:
    """Patterns of everything that a repository's ``patterns``, ``unpack`` and ``files`` ask for; none means all."""
    if not config.get("patterns"):
        return []
    return [*config["patterns"], *(config.get("unpack") or []), *map(glob.escape, config.get("files") or {})]


def chosen(repository: str, names: list[str], patterns: list[str]) -> list[str]:
    """The files of a repository to take; :class:`UserError` when there are none or one would leave its folder."""
    for name in names:
        if trouble := unsafe(name):
            raise UserError(f"cannot fetch {repository}: {trouble}: {name!r}", "do not use this repository")
    return select(names, patterns, (), repository)


def _advice(error: Exception) -> str:
    from huggingface_hub import errors

    token = "HF_TOKEN is set" if os.environ.get("HF_TOKEN") else "HF_TOKEN is not set"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "offline mode is on: unset HF_HUB_OFFLINE, or copy results/sources from a machine that has a network"
    if isinstance(error, errors.GatedRepoError):
        return f"gated: accept its conditions on its page, and set HF_TOKEN to a token of that account ({token})"
    if isinstance(error, errors.RevisionNotFoundError):
        return "no such revision: correct `revision`, or leave it out for the default branch"
    if isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError) or status in (401, 403, 404):
        return f"check the name and `kind`; a private or gated repository needs a token in HF_TOKEN ({token})"
    return "check the network (another server: HF_ENDPOINT), then run again: whole files are kept"
