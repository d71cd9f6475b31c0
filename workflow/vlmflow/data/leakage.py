"""The same picture in the training data and in an evaluation would make any score worthless: found before training."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlmflow.data.pictures import Picture, read_pictures
from vlmflow.data.similar import similar_pictures
from vlmflow.errors import UserError
from vlmflow.files import write_json

_log = logging.getLogger(__name__)
_LISTED = 100  # pictures of a kind in the file
_NAMED = 3  # pairs in the message


def check_leakage(train: list[Path], evaluations: dict[str, Any], output: Path) -> None:
    """Compare the training pictures of data sets ``train`` (manifests) with those of every evaluation.

    ``evaluations`` is name -> ``data`` (manifest), ``split``, ``leakage`` (error or report). The same picture is found
    by its pixels, whatever its file; pictures that only look alike are counted and listed. Writes the findings to
    ``output``, or raises :class:`UserError` about every evaluation that must not share a picture and does. One that
    asks what is trained on, the ``train`` split of one of these data sets, means to and is not compared.
    """
    trained: dict[str, str] = {}
    looks: dict[str, int] = {}
    for manifest in dict.fromkeys(train):
        for picture in _pictures(manifest, "train"):
            trained.setdefault(picture.pixels, picture.path)
            looks[picture.path] = int(picture.look, 16)
    by_heart = {(str(manifest), "train") for manifest in train}
    asked = {name: node for name, node in evaluations.items() if (node["data"], node["split"]) not in by_heart}
    found = {name: _compare(trained, looks, Path(node["data"]), node["split"]) for name, node in asked.items()}
    for name, facts in found.items():
        _log.info(
            "%s: %d of %d pictures are in the training data, %d more look like one that is", name,
            facts["identical"]["count"], facts["pictures"], facts["near_identical"]["count"],
        )  # fmt: skip
    _refuse({name: facts for name, facts in found.items() if asked[name]["leakage"] == "error"})
    rules = {name: {"split": node["split"], "leakage": node["leakage"]} for name, node in asked.items()}
    evaluated = {name: {**rules[name], **facts} for name, facts in found.items()}
    write_json(output, {"training_pictures": len(trained), "evaluations": evaluated})


def _pictures(manifest: Path, split: str) -> list[Picture]:
    return [picture for picture in read_pictures(manifest.parent / "pictures.jsonl") if picture.split == split]


def _compare(trained: dict[str, str], looks: dict[str, int], data: Path, split: str) -> dict[str, Any]:
    """What an evaluation's pictures share with the training data; ``trained`` is hash of the pixels -> path."""
    pictures = _pictures(data, split)
    identical = [(picture.path, trained[picture.pixels]) for picture in pictures if picture.pixels in trained]
    others = {picture.path: int(picture.look, 16) for picture in pictures if picture.pixels not in trained}
    near = similar_pictures(others, looks)
    return {
        "pictures": len(pictures),
        "identical": _listed(identical, ("evaluation", "training")),
        "near_identical": _listed(near, ("evaluation", "training", "bits_apart")),
    }


def _listed(rows: Sequence[Sequence[object]], keys: Sequence[str]) -> dict[str, Any]:
    return {"count": len(rows), "first": [dict(zip(keys, row, strict=True)) for row in rows[:_LISTED]]}


def _refuse(found: dict[str, dict[str, Any]]) -> None:
    shared = {name: facts for name, facts in found.items() if facts["identical"]["count"]}
    if not shared:
        return
    lines = []
    for name, facts in shared.items():
        pairs = [f"{pair['evaluation']} = {pair['training']}" for pair in facts["identical"]["first"][:_NAMED]]
        more = ", ..." if facts["identical"]["count"] > _NAMED else ""
        count = f"{facts['identical']['count']} of {facts['pictures']} pictures"
        lines.append(f"evaluation {name}: {count} ({', '.join(pairs)}{more})")
    raise UserError(
        "leakage: pictures are in the training data and in an evaluation: " + "; ".join(lines),
        "give both data sets the same split seed and shares, so that a picture falls on the same side in both; or "
        "evaluate on other data; or only count them with `leakage: report`",
    )
