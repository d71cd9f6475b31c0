"""Repositories of the Hugging Face hub, fetched whole or by patterns at one revision."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from vlmflow.errors import UserError


def fetch_hub(config: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Download ``config['hub']`` at ``revision`` into ``directory``; return what identifies it, commit included.

    ``kind`` is model or dataset, ``patterns`` limits the files. The token comes from HF_TOKEN, another server from
    HF_ENDPOINT, and HF_HUB_OFFLINE is respected: the library reads them.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import OfflineModeIsEnabled

    where = {"repo_id": config["hub"], "repo_type": config["kind"], "revision": config["revision"]}
    try:
        commit = HfApi().repo_info(**where).sha
        snapshot_download(
            **{**where, "revision": commit}, allow_patterns=config["patterns"] or None, local_dir=directory
        )
    except OfflineModeIsEnabled as error:
        advice = "unset HF_HUB_OFFLINE, or copy results/sources from a machine that has a network"
        raise UserError(f"cannot fetch {config['hub']}: offline mode is on", advice) from error
    except Exception as error:  # the client's, its transport's and the disk's have no common ancestor
        advice = "check the name and the revision; a private or gated repository needs HF_TOKEN; check the network"
        raise UserError(f"cannot fetch {config['hub']}: {str(error).splitlines()[0]}", advice) from error
    shutil.rmtree(directory / ".cache", ignore_errors=True)  # the library's own bookkeeping
    return {"hub": config["hub"], "kind": config["kind"], "revision": config["revision"], "commit": commit}
