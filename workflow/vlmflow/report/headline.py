"""The headline of an experiment, for the terminal."""

from __future__ import annotations

from pathlib import Path

from vlmflow.evaluation.summary import sentence
from vlmflow.files import read_json


def headline(comparison: Path) -> str:
    """``title``, before -> after with interval and n, and where the report is."""
    found = read_json(comparison)
    title = found["experiment"]["title"] or found["experiment"]["name"]
    return f"\n{title}\n  {sentence(found['headline'])}\n  report: {comparison.with_name('index.html')}\n"


def print_headline(comparison: Path) -> None:
    """Print :func:`headline`."""
    print(headline(comparison))
