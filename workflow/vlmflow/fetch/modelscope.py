"""Repositories of ModelScope, fetched whole or by patterns at one revision."""

from __future__ import annotations

import os
import posixpath
import re
from typing import TYPE_CHECKING, Any

from vlmflow.errors import UserError
from vlmflow.fetch.hub import chosen, wanted_patterns
from vlmflow.fetch.local import reuse
from vlmflow.fetch.partial import Fetched, Partial
from vlmflow.fetch.trouble import first_line, out_of_space

if TYPE_CHECKING:
    from modelscope_hub import HubApi

TOKEN = "MODELSCOPE_API_TOKEN"


def fetch_modelscope(config: dict[str, Any], partial: Partial) -> Fetched:
    """Download ``config['modelscope']`` at ``revision`` (master when None), each file checked by its listed SHA-256.

    ``kind`` is model or dataset, ``patterns`` limits the files. The token comes from MODELSCOPE_API_TOKEN and from
    nowhere else, another server from MODELSCOPE_ENDPOINT; HF_HUB_OFFLINE holds here too, for this client has no such
    switch. Whole files of an earlier run are kept, cut ones continued. The commit is the newest among the listed
    files, since the server tells none of the revision.
    """
    repository, kind, revision = config["modelscope"], config.get("kind", "model"), config.get("revision")
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        advice = "unset HF_HUB_OFFLINE, or copy results/sources from a machine that has a network"
        raise UserError(f"cannot fetch {repository}: offline mode is on", advice)
    from modelscope_hub import HubApi, HubConfig

    # An empty token, unlike none, keeps the client from reading one that was stored by an earlier login.
    api = HubApi(HubConfig(token=os.environ.get(TOKEN, "")))
    try:
        wanted = wanted_patterns(config)
        files = _listing(api, (repository, kind, revision or "master"), wanted)
        names = chosen(repository, [_text(entry, "Path") for entry in files], wanted)
        taken = set(names)
        hashes = {_text(entry, "Path"): _text(entry, "Sha256") for entry in files}
        reuse(partial, {name: hashes[name] for name in names if hashes[name]})
        api.download_repo(
            repository, kind, revision=revision, cache_dir=partial.state, local_dir=partial.files,
            file_list=[entry for entry in files if _text(entry, "Path") in taken],
        )  # fmt: skip
    except UserError:
        raise
    except Exception as error:  # the client's, its transport's and the disk's have no common ancestor
        error = next(iter(getattr(error, "failed_files", {}).values()), error)
        if out_of_space(error):
            raise error from None
        raise UserError(f"cannot fetch {repository}: {first_line(error)}", _advice(error)) from error
    facts = {"modelscope": repository, "kind": kind, "revision": revision, "commit": _commit(files)}
    return Fetched(names, facts)


def _listing(api: HubApi, where: tuple[str, str, str], wanted: list[str]) -> list[dict[str, Any]]:
    """The files of a repository (name, kind, revision), or if it is too large to list, those that ``wanted`` may mean.

    Raises :class:`UserError` when the client says that it could not see all of these.
    """
    files, complete = _files_below(api, where, None)
    named = {name: files[name] for name in wanted if name in files}
    folders = {posixpath.dirname(re.split(r"[*?[]", pattern, maxsplit=1)[0]) for pattern in set(wanted) - named.keys()}
    if not complete and wanted and "" not in folders:
        files, complete = named, True
        for folder in sorted(folders):
            below, all_seen = _files_below(api, where, folder)
            files, complete = files | below, complete and all_seen
    if not complete:
        raise UserError(
            f"incomplete listing: the server does not list all files of {where[0]}",
            "name `patterns` that are whole file names or begin with a folder of fewer than 3000 files, such as "
            "FOLDER/*; the rest is to be fetched by parts, with other sources",
        )
    return list(files.values())


def _files_below(
    api: HubApi, where: tuple[str, str, str], folder: str | None
) -> tuple[dict[str, dict[str, Any]], bool]:
    """Name -> entry of the files below a folder, and whether these are all."""
    repository, kind, revision = where
    entries = api.legacy.list_repo_files(repository, kind, revision, root=folder)
    # The client has no public word for it. Data sets are listed page by page, and so whole.
    complete = kind == "dataset" or not api.legacy._read_state.listing_incomplete
    return {_text(entry, "Path"): entry for entry in entries if _text(entry, "Type") != "tree"}, complete


def _text(entry: dict[str, Any], key: str) -> str:
    return str(entry.get(key) or entry.get(key.lower()) or "")


def _commit(files: list[dict[str, Any]]) -> str | None:
    newest = max(files, key=lambda entry: entry.get("CommittedDate") or 0)
    return newest.get("Revision") or None


def _advice(error: BaseException) -> str:
    from modelscope_hub import AuthenticationError, NetworkError, NotExistError, PermissionDeniedError

    token = f"{TOKEN} is set" if os.environ.get(TOKEN) else f"{TOKEN} is not set"
    if isinstance(error, AuthenticationError | PermissionDeniedError):
        return f"private or gated: ask for access on its page, and set {TOKEN} to a token of that account ({token})"
    if isinstance(error, NotExistError):
        return f"check the name, `kind` and `revision`; a private repository needs a token in {TOKEN} ({token})"
    if isinstance(error, NetworkError):
        return "check the network (another server: MODELSCOPE_ENDPOINT), then run again: what arrived is kept"
    return "run again: what arrived is kept"
