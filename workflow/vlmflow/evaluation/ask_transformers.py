"""Asking in transformers, as the script calls it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmflow.evaluation.ask import Part, ask
from vlmflow.evaluation.engines import Settings, Source, transformers
from vlmflow.fingerprint import fingerprint


def ask_transformers(
    config: dict[str, Any],
    model: Path,
    checkpoint: str,
    data: Path,
    shard: str,
    batch_size: int,
    cache: Path,
    output: Path,
    projector: Path | None = None,
    adapter: Path | None = None,
) -> None:
    """Write the answers of ``checkpoint`` to part ``shard`` of an evaluation (:class:`vlmflow.evaluation.ask.Part`).

    The checkpoint is ``model``, with a pretrained ``projector`` or a fine-tuned ``adapter`` over it (manifests).
    ``config``: split, limit, prompt, max_new_tokens, max_tiles.
    """
    source, settings = Source(model, projector, adapter), Settings(config["max_new_tokens"], config["max_tiles"])
    part, code = Part(config, checkpoint, data, shard, cache, output), fingerprint(Path(transformers.__file__))
    facts = transformers.transformers_facts(source)
    ask(part, source, facts, code, lambda: transformers.TransformersEngine(source, settings, batch_size))
