"""Many questions at once: what is answered is kept, and a server that answers nothing is given up."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from vlmflow.endpoint.client import Endpoint
from vlmflow.endpoint.pace import StoppedError
from vlmflow.errors import Problem, UserError

_IN_A_ROW = 10  # questions that the server fails on, one after the other, before no more are tried
_LISTED = 100  # problems in the message
_EVERY = 30.0  # seconds between lines of progress in a log
_log = logging.getLogger(__name__)

_Task = TypeVar("_Task")
Asked = tuple[Any, bool]
"""An answer or a :class:`vlmflow.errors.Problem`, and whether the endpoint was asked at all."""


def ask_all(
    tasks: Mapping[str, _Task], ask: Callable[[str, _Task], Asked], endpoint: Endpoint, parallel: int, what: str
) -> tuple[dict[str, Any], dict[str, Problem]]:
    """Answers and problems by key; neither for tasks that were not tried after too many failures in a row.

    ``ask`` takes key and task, and keeps an answer where a killed run finds it again. Closes ``endpoint``.
    """
    answers: dict[str, Any] = {}
    failed: dict[str, Problem] = {}
    in_a_row, enough = 0, max(_IN_A_ROW, parallel)
    with contextlib.closing(endpoint), ThreadPoolExecutor(parallel) as pool:
        try:
            futures = [pool.submit(_ask, ask, endpoint, key, task) for key, task in tasks.items()]
            for key, result, asked in _progress(futures, what):
                if isinstance(result, Problem):
                    failed[key], in_a_row = result, in_a_row + asked
                elif result is not None:
                    answers[key], in_a_row = result, 0
                if in_a_row >= enough:
                    endpoint.pace.stop()
        except BaseException:
            endpoint.pace.stop()  # requests under way come to their end, and their answers are kept
            raise
    return answers, failed


def _ask(ask: Callable[[str, _Task], Asked], endpoint: Endpoint, key: str, task: _Task) -> tuple[str, Any, bool]:
    """Key, what became of the task (None: not tried), and whether the endpoint was asked."""
    try:
        endpoint.pace.sleep(0)
        return key, *ask(key, task)
    except StoppedError:
        return key, None, False
    except UserError:
        endpoint.pace.stop()  # here, so that not one request more is made
        raise


def _progress(futures: list[Future[Any]], what: str) -> Iterator[Any]:
    """Results as they come, with a bar for a person or a line now and then for a log."""
    watched = sys.stderr.isatty()
    bar = tqdm(as_completed(futures), what, len(futures), disable=not watched)
    last = time.monotonic()
    for done, future in enumerate(bar, 1):
        yield future.result()
        if not watched and time.monotonic() - last >= _EVERY:
            last = time.monotonic()
            _log.info("%d of %d %s asked", done, len(futures), what)


def failure(missing: str, problems: Sequence[Problem], unasked: int, advice: str, cache: Path) -> UserError:
    """One error for everything that has no answer; ``missing`` says what these are."""
    kinds = Counter(problem.reason.split(":")[0] for problem in problems)
    counts = ", ".join(f"{count} x {kind}" for kind, count in kinds.most_common())
    lines = [str(problem).replace("\n", "\n  ") for problem in problems[:_LISTED]]
    lines += [f"... and {len(problems) - _LISTED} more"] if len(problems) > _LISTED else []
    lines += [f"{unasked} more were not asked about after too many failures in a row"] if unasked else []
    kept = f"{advice} and run again; the other answers are kept in {cache} and not asked for again"
    return UserError(f"{missing}: {counts}\n  " + "\n  ".join(lines), kept)


def total(usages: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The sum of several counts of tokens."""
    result: Counter[str] = Counter()
    for usage in usages:
        result.update(usage)
    return dict(result)
