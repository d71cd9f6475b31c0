"""Whether what is there was made with the settings of today, by what the stages left beside it; nothing is run."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlmflow.errors import UserError

Read = Callable[[Path], Any]
"""Reads a JSON file; a :class:`UserError` if it is not there."""


def made_as_told(made: dict[str, Any], read: Read) -> bool:
    """Whether an experiment's comparison is that of its settings.

    ``made`` has its ``steps`` (each a provenance.json or scores.json as ``file``, the ``settings`` that it should tell,
    and the manifests of its ``inputs``, None for one that it should not have) and its ``comparison`` of ``scores``
    (evaluation -> files of before and after).
    """
    try:
        return all(_as_told(step, read) for step in made["steps"]) and _compares(made, read)
    except UserError:  # a step's file is gone: it is to be made again
        return False


def _as_told(step: dict[str, Any], read: Read) -> bool:
    found = read(Path(step["file"]))
    settings = found["config"] if "config" in found else {**found["generation"], "metrics": list(found["metrics"])}
    inputs = {name: read(Path(place))["hash"] if place else None for name, place in step["inputs"].items()}
    return all(settings.get(key) == value for key, value in step["settings"].items()) and all(
        found["inputs"].get(name) == content for name, content in inputs.items()
    )


def _compares(made: dict[str, Any], read: Read) -> bool:
    """Whether the comparison was made after the scores."""
    compared = {
        (evaluation["evaluation"], end, found["metric"]): found[end]
        for evaluation in read(Path(made["comparison"]))["evaluations"]
        for found in evaluation["metrics"]
        for end in ("before", "after")
    }
    measured = {
        (evaluation, end, metric): value
        for evaluation, files in made["scores"].items()
        for end, file in zip(("before", "after"), files, strict=True)
        for metric, value in read(Path(file))["metrics"].items()
    }
    return compared.keys() == measured.keys() and all(math.isclose(compared[key], measured[key]) for key in compared)
