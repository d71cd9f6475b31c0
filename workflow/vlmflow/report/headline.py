"""The headline of an experiment, for the terminal."""

from __future__ import annotations

import csv
from pathlib import Path

from vlmflow.evaluation.summary import plain, score, sentence
from vlmflow.files import read_json


def headline(comparison: Path) -> str:
    """``title``, before -> after with interval and n, and where the report is."""
    found = read_json(comparison)
    title = found["experiment"]["title"] or found["experiment"]["name"]
    return f"\n{title}\n  {sentence(found['headline'])}\n  report: {comparison.with_name('index.html')}\n"


def best_variant(table: Path) -> str:
    """The first line of a sweep's table.tsv in words, and where the table is."""
    with table.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    best = rows[0]
    measured = f"{best['evaluation']}: {plain(best['metric'])} {score(float(best['after']), best)}"
    return f"\nBest of {len(rows)}: {best['experiment']}\n  {measured}\n  table: {table.with_suffix('.html')}\n"


def print_headline(comparison: Path) -> None:
    """Print :func:`headline`."""
    print(headline(comparison))
