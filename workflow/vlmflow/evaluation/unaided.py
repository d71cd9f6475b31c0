"""What can be answered without a model: the baselines of one evaluation, as the script calls them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmflow.evaluation.baselines import evaluate_baselines
from vlmflow.files import read_manifest


def evaluate_unaided(config: dict[str, Any], train: list[Path], data: Path, output: Path) -> None:
    """Answer the evaluation of data set ``data`` from the training data ``train`` (manifests), without a model.

    ``config``: split, metrics, limit, chinese.
    """
    for manifest in (*train, data):
        read_manifest(manifest)
    trained = [manifest.parent / "train.jsonl" for manifest in train]
    asked = data.parent / f"{config['split']}.jsonl"
    evaluate_baselines(trained, asked, config["metrics"], output, config["limit"], config["chinese"])
