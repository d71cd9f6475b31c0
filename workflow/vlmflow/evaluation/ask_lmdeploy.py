"""Asking in LMDeploy, as the script calls it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmflow.evaluation.ask import Part, ask
from vlmflow.evaluation.engines import Settings, Source, lmdeploy
from vlmflow.fingerprint import fingerprint


def ask_lmdeploy(
    config: dict[str, Any], model: Path, checkpoint: str, data: Path, shard: str, gpus: int, cache: Path, output: Path
) -> None:
    """Write the answers of ``checkpoint`` to part ``shard`` of an evaluation (:class:`vlmflow.evaluation.ask.Part`).

    ``model`` is the manifest of a model directory, which ``gpus`` GPUs hold together. ``config``: split, limit, prompt,
    max_new_tokens, max_tiles, lmdeploy.
    """
    source, settings = Source(model), Settings(config["max_new_tokens"], config["max_tiles"])
    part, code = Part(config, checkpoint, data, shard, cache, output), fingerprint(Path(lmdeploy.__file__))
    options = config["lmdeploy"]
    facts = lmdeploy.lmdeploy_facts(source)
    ask(part, source, facts, code, lambda: lmdeploy.LmdeployEngine(source, settings, options, gpus))
