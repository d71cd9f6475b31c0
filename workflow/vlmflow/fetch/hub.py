"""Repositories of the Hugging Face hub, fetched whole or by patterns at one revision."""

from __future__ import annotations

import glob
import os
from typing import Any

from vlmflow.errors import UserError
from vlmflow.fetch.local import reuse
from vlmflow.fetch.names import select, unsafe
from vlmflow.fetch.partial import Fetched, Partial, start_anew_unless
from vlmflow.fetch.trouble import first_line, out_of_space


def fetch_hub(config: dict[str, Any], partial: Partial) -> Fetched:
    """Download ``config['hub']`` at ``revision`` (the default branch when None); the commit is recorded.

    ``kind`` is model or dataset, ``patterns`` limits the files. The token comes from HF_TOKEN, another server from
    HF_ENDPOINT, and HF_HUB_OFFLINE is respected: the library reads them. Whole files of an earlier run are kept.
    """
    from huggingface_hub import HfApi, snapshot_download

    repository, revision, wanted = config["hub"], config.get("revision"), wanted_patterns(config)
    where = {"repo_id": repository, "repo_type": config.get("kind", "model")}
    try:
        info = HfApi().repo_info(**where, revision=revision, files_metadata=True)
        siblings = {file.rfilename: file for file in getattr(info, "siblings", None) or []}
        names = chosen(repository, list(siblings), wanted)
        start_anew_unless(partial, str(info.sha))
        large = {name: siblings[name].lfs for name in names}
        reuse(partial, {name: str(pointer["sha256"]) for name, pointer in large.items() if pointer})
        for cut in partial.files.glob(".cache/huggingface/download/**/*.incomplete"):
            cut.unlink()  # of a killed run: the library begins a cut file anew, under another name
        snapshot_download(**where, revision=info.sha, allow_patterns=wanted or None, local_dir=partial.files)
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
    facts = {"hub": repository, "kind": where["repo_type"], "revision": revision, "commit": info.sha}
    return Fetched(names, facts)


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
