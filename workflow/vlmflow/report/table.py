"""One table over many experiments: what was varied, what came out of it, where it comes from; best first."""

from __future__ import annotations

import base64
import csv
import functools
import hashlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from vlmflow.evaluation.compare import measure
from vlmflow.evaluation.summary import plain, points, points_between, score
from vlmflow.files import read_json, sha256_json, write_text
from vlmflow.report import figures
from vlmflow.report.made import made_as_told
from vlmflow.report.templates import templates

_FOLDER = Path(__file__).resolve().parent
_HASH = 12  # characters of a hash in a table
_NAMED = 5  # unfinished experiments that are named

Row = dict[str, Any]


class Column(NamedTuple):
    """One column of the page; ``order`` is what it is sorted by."""

    heading: str
    words: Callable[[Row], str]
    order: Callable[[Row], Any]


def tabulate_sweep(table: Path, results: Path, output: Path) -> None:
    """Write ``output`` (.tsv, every figure) and beside it .md and .html (for readers).

    ``table`` (JSON) has a ``title``, the varied ``keys`` and ``rows`` of experiment, finetune and a value for each key;
    ``results`` is the folder that has their comparisons and provenance.
    """
    told = read_json(table)
    _write(told, _sorted(_row(told["keys"], row, results, output) for row in told["rows"]), output, "")


def tabulate_results(table: Path, results: Path, output: Path) -> None:
    """:func:`tabulate_sweep` of the experiments that are finished by now, printed too.

    ``table`` also says how each is ``made``: one that was made with other settings is left out, and told.
    """
    told = read_json(table)
    read = functools.cache(read_json)  # variants share most of their files
    there = [row for row in told["rows"] if all(file.is_file() for file in _files(row, results))]
    rows = [row for row in there if made_as_told(told["made"][row[0]], read)]
    note = f"{len(rows)} of {len(told['rows'])} experiments are finished"
    note += _named("; not yet: ", [row[0] for row in told["rows"] if row not in there])
    other = _named("; made with other settings: ", [row[0] for row in there if row not in rows])
    note += other and f"{other} (snakemake -n tells what would run)"
    found = _sorted(_row(told["keys"], row, results, output) for row in rows)
    _write(told, found, output, note)
    print(f"\n{_markdown(_columns(told['keys'], found), found)}\n{note}\n{output.with_suffix('.html')}\n")


def _named(heading: str, experiments: list[str]) -> str:
    names = ", ".join(experiments[:_NAMED]) + (", ..." if len(experiments) > _NAMED else "")
    return f"{heading}{names}" if experiments else ""


def _sorted(rows: Any) -> list[Row]:
    """Best first, by the direction of the metric, among those that were measured alike."""
    sign = {"higher": -1, "lower": 1}
    return sorted(rows, key=lambda row: (row["evaluation"], row["metric"], sign[row["better"]] * row["after"]))


def _files(cells: list[Any], results: Path) -> list[Path]:
    """What an experiment is read from: its comparison, provenance and manifest of its finetune."""
    experiment, finetune, *_ = cells
    trained = results / "finetune" / finetune
    return [results / "report" / experiment / "comparison.json", trained / "provenance.json", trained / "manifest.json"]


def _row(keys: list[str], cells: list[Any], results: Path, output: Path) -> Row:
    """Everything about one experiment, by the names of the columns of the .tsv."""
    experiment, finetune, *values = cells
    comparison, provenance, manifest = map(read_json, _files(cells, results))
    headline, training = comparison["headline"], provenance.get("training", {})
    others = {
        f"{evaluation['evaluation']} {found['metric']}": found["after"]
        for evaluation in comparison["evaluations"]
        for found in evaluation["metrics"]
    }
    others.pop(f"{headline['evaluation']} {headline['metric']}")
    return {
        "experiment": experiment,
        **dict(zip(keys, values, strict=True)),
        **{key: headline[key] for key in ("evaluation", "metric")},
        **measure(headline["metric"]),
        **{key: headline[key] for key in ("before", "after", "difference")},
        "ci95_low": headline["ci95"][0],
        "ci95_high": headline["ci95"][1],
        **{key: headline[key] for key in ("p_value", "n", "pictures")},
        **others,
        "final_loss": _final_loss(results / "finetune" / finetune / "metrics.jsonl"),
        "steps": training.get("steps"),
        "trained_parameters": training.get("trained_parameters"),
        "train_seconds": provenance.get("wall_seconds"),
        "peak_memory_mb": provenance.get("peak_memory_mb"),
        "peak_gpu_memory_mb": provenance.get("hardware", {}).get("peak_gpu_memory_mb"),
        "report": Path(os.path.relpath(results / "report" / experiment / "index.html", output.parent)).as_posix(),
        "finetune": finetune,
        "adapter": manifest["hash"][:_HASH],
        "config": sha256_json(provenance["config"])[:_HASH],
        "inputs": sha256_json(provenance["inputs"])[:_HASH],
        "vlmflow": provenance["vlmflow"],
    }


def _final_loss(log: Path) -> float | None:
    """Mean loss of the last twentieth of the steps; None for a finetune that was not trained here."""
    if not log.is_file():
        return None
    losses = [json.loads(line)["loss"] for line in log.read_text(encoding="utf-8").splitlines() if '"loss"' in line]
    last = losses[-max(1, len(losses) // 20) :]
    return round(sum(last) / len(last), 6) if last else None


def _write(table: dict[str, Any], rows: list[Row], output: Path, note: str) -> None:
    columns = _columns(table["keys"], rows)
    write_text(output, _tsv(table["keys"], rows))
    write_text(
        output.with_suffix(".md"), f"# {_cell(table['title'])}\n\n{_markdown(columns, rows)}\n{note}".rstrip() + "\n"
    )
    write_text(output.with_suffix(".html"), _page(table["title"], columns, rows, note))


def _tsv(keys: list[str], rows: list[Row]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row)) or ["experiment", *keys]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, names, delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _exact(row.get(name)) for name in names} for row in rows)
    return stream.getvalue()


def _exact(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, bool | list | dict) else value


def _columns(keys: list[str], rows: list[Row]) -> list[Column]:
    """What readers are shown; memory and headlines only where they tell something."""
    several = len({(row["evaluation"], row["metric"]) for row in rows}) > 1
    metric = "after" if several or not rows else f"{rows[0]['evaluation']}: {_metric_words(rows[0]['metric'])}"
    known = dict.fromkeys(name for row in rows for name in row)
    places = list(known)
    others = places[places.index("pictures") + 1 : places.index("final_loss")] if rows else []
    gpu = any(row["peak_gpu_memory_mb"] for row in rows)
    return [
        *(_plain(key.removeprefix("finetune."), key) for key in keys),
        *([_plain("evaluation", "evaluation"), _shown("metric", "metric", _metric_words)] if several else []),
        _scored("before", "before"),
        _scored(metric, "after"),
        Column(
            "points (95% CI)",
            lambda row: f"{points(row['difference'])} ({points_between((row['ci95_low'], row['ci95_high']))})",
            lambda row: row["difference"],
        ),
        _shown("n", "n", "{:,}".format),
        *(_other(name) for name in others),
        _shown("final loss", "final_loss", "{:.3f}".format),
        _shown("training", "train_seconds", _duration),
        _shown("memory", "peak_gpu_memory_mb" if gpu else "peak_memory_mb", lambda mb: f"{mb / 1000:.1f} GB"),
        _plain("adapter", "adapter"),
    ]


def _scored(heading: str, name: str) -> Column:
    """A score of the headline's metric."""
    return Column(heading, lambda row: score(row[name], row), lambda row: row[name])


def _other(name: str) -> Column:
    """A score of an evaluation's metric that is not the headline."""
    evaluation, metric = name.rsplit(" ", 1)
    return _shown(f"{evaluation}: {_metric_words(metric)}", name, lambda value: score(value, measure(metric)))


def _metric_words(metric: str) -> str:
    return plain(metric) + (" (lower is better)" if measure(metric)["better"] == "lower" else "")


def _plain(heading: str, name: str) -> Column:
    return _shown(heading, name, lambda value: str(_exact(value)))


def _shown(heading: str, name: str, words: Callable[[Any], str]) -> Column:
    """A column of one value, empty where there is none."""
    return Column(heading, lambda row: "" if row.get(name) is None else words(row[name]), lambda row: row.get(name))


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def _markdown(columns: list[Column], rows: list[Row]) -> str:
    """A Markdown table in equal columns, readable in a terminal too; each experiment links to its report."""
    table = [["experiment", *(column.heading for column in columns)]]
    table += [[row["experiment"], *(_cell(column.words(row)) for column in columns)] for row in rows]
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    lines = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in table]
    lines.insert(1, ["-" * width for width in widths])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _page(title: str, columns: list[Column], rows: list[Row], note: str) -> str:
    script = (_FOLDER / "table.js").read_text(encoding="utf-8")
    return (
        templates()
        .get_template("table.html.j2")
        .render(
            title=title,
            columns=columns,
            rows=rows,
            note=note,
            styles=Markup(figures.STYLES + (_FOLDER / "table.css").read_text(encoding="utf-8")),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
        )
    )
