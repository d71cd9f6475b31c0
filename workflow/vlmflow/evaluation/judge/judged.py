"""judged.json: what the judge said about every answer of a checkpoint."""

from __future__ import annotations

from pathlib import Path

from vlmflow.errors import UserError
from vlmflow.files import read_json


def read_judged(path: Path) -> dict[str, float]:
    """Record id -> score from 0 (wrong) to 1 (right)."""
    content = read_json(path)
    try:
        return {line["id"]: float(line["score"]) for line in content["judged"]}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError("not what the judge wrote", f"delete {path} and run snakemake again", file=path) from error
