"""What becomes of a data set with bad records: the run stops, or they are left out up to a limit."""

from __future__ import annotations

import dataclasses
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmflow.data.report import kind
from vlmflow.errors import Problem, UserError

_log = logging.getLogger(__name__)
_PRINTED = 10  # problems of a kind in the log; problems.md has all


def apply_policy(
    config: dict[str, Any], read: int, splits: Mapping[str, int], problems: Sequence[Problem], folder: Path
) -> None:
    """Log the problems; raise unless what is wrong may be left out, and something is left to train on.

    A problem of a whole file may never be left out. ``splits`` are the usable records of each, ``folder`` will hold
    problems.md.
    """
    _print(problems)
    for problem in problems:
        if problem.record is None:
            raise UserError(problem.reason, problem.advice, file=problem.file, field=problem.field)
    usable = sum(splits.values())
    dropped = read - usable
    limit = config["max_dropped"] if config["on_error"] == "drop" else 0
    if dropped > limit:
        allowed = f", {limit} may be dropped (max_dropped)" if config["on_error"] == "drop" else ""
        first = dataclasses.replace(problems[0], advice="")
        reason = f"{dropped} of {read} records cannot be used{allowed} (first: {first})"
        other = (
            "raise `max_dropped`"
            if config["on_error"] == "drop"
            else "leave it out: `on_error: drop` and `max_dropped`"
        )
        advice = f"correct what {folder / 'problems.md'} lists, or {other}"
        raise UserError(reason, advice)
    if not usable:
        raise UserError("no records", "the annotation files hold no usable record", field="annotations")
    if not splits["train"]:
        advice = "give more pictures, smaller shares or another seed under `split`; connected records stay together"
        raise UserError(f"no record is left to train on: {dict(splits)}", advice)


def _print(problems: Sequence[Problem]) -> None:
    kinds: dict[str, list[Problem]] = defaultdict(list)
    for problem in problems:
        kinds[kind(problem.reason)].append(problem)
    for name, found in kinds.items():
        for problem in found[:_PRINTED]:
            _log.error("%s", problem)
        if len(found) > _PRINTED:
            _log.error("... and %d more of this kind: %s", len(found) - _PRINTED, name)
