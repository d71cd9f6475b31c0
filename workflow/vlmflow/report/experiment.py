"""The report of one experiment, as the script calls it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmflow.evaluation.compare import evaluation_runs
from vlmflow.report.render import render_report


def report_experiment(
    experiment: dict[str, Any], evaluations: dict[str, Any], sources: dict[str, Any], comparison: Path, output: Path
) -> None:
    """Write index.html and loss.svg.

    ``sources``: metrics (stage -> metrics.jsonl), provenance, data_reports, example (files), commands (to reproduce).
    """
    render_report(
        comparison,
        evaluation_runs(evaluations),
        output,
        experiment["title"] or experiment["name"],
        metrics_logs=sources["metrics"],
        provenance=[Path(path) for path in sources["provenance"]],
        data_reports=[Path(path) for path in sources["data_reports"]],
        example=Path(sources["example"]) if sources["example"] else None,
        commands=sources["commands"],
    )
