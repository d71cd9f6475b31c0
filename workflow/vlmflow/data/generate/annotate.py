"""The generation stage: pictures in, annotations out, every answer paid for once."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from vlmflow.data.generate.endpoint import Endpoint
from vlmflow.data.generate.pace import StoppedError
from vlmflow.data.generate.pictures import data_url, find_pictures
from vlmflow.data.generate.prompt import prompt_text
from vlmflow.data.generate.store import Answer, Store
from vlmflow.data.report import shown
from vlmflow.errors import Problem, UserError
from vlmflow.files import sha256_file, staged_directory, write_json, write_manifest

_IN_A_ROW = 10  # pictures that the server fails on, one after the other, before no more are tried
_LISTED = 100  # problems in the message
_EVERY = 30.0  # seconds between lines of progress in a log
_log = logging.getLogger(__name__)


def generate_annotations(
    config: dict[str, Any], limits: dict[str, Any], images: Path, cache: Path, output: Path
) -> None:
    """Let a model write questions and answers about every picture below ``images``.

    ``config`` is the data set's ``generate`` node of the configuration without ``limits``, ``limits`` that part.
    Answers are kept in ``cache`` at once, so that no picture is paid for twice whatever happens. Writes
    annotations.json (schemas/llava.schema.yaml) beside ``output``, its manifest. Raises one :class:`UserError` that
    lists every picture without an answer, after all the others are done; at once when no picture can be answered.
    """
    found, problems = find_pictures(images)
    prompt = prompt_text(config["prompt"], config["pairs"])
    store = Store(cache, config, prompt)
    pictures, unreadable = _pictures(images, found, store)
    distinct = {picture.key: picture for picture in reversed(pictures)}  # of equal ones, the first
    answers = {key: answer for key in distinct if (answer := store.read(key)) is not None}
    missing = [picture for key, picture in reversed(distinct.items()) if key not in answers]
    _log.info("%d pictures: %d answers are there already, %d to ask for", len(found), len(answers), len(missing))
    failed: dict[str, Problem] = {}
    if missing:
        new, failed = _ask_all(missing, Endpoint(config, limits, prompt), store, limits["parallel"])
        answers |= new
    lost = [dataclasses.replace(failed[p.key], file=shown(p.path, 200)) for p in pictures if p.key in failed]
    problems += unreadable + lost
    unasked = sum(picture.key not in answers and picture.key not in failed for picture in pictures)
    if problems or unasked:
        raise _summary(problems, unasked, cache)
    _write(output, {picture.name: answers[picture.key] for picture in pictures}, config, prompt, answers)


class _Picture(NamedTuple):
    """A picture file, its content, and the name of the answer about it: equal pictures have the same."""

    root: Path
    name: str
    sha256: str
    key: str

    @property
    def path(self) -> Path:
        return self.root / self.name


def _pictures(root: Path, found: dict[str, Path], store: Store) -> tuple[list[_Picture], list[Problem]]:
    pictures, problems = [], []
    for name, path in found.items():
        try:
            sha256 = sha256_file(path)
        except OSError as error:
            reason = f"picture cannot be read: {error.strerror}"
            problems.append(Problem(reason, "correct its permissions", shown(path, 200)))
        else:
            pictures.append(_Picture(root, name, sha256, store.key(sha256)))
    return pictures, problems


def _ask_all(
    missing: list[_Picture], endpoint: Endpoint, store: Store, parallel: int
) -> tuple[dict[str, Answer], dict[str, Problem]]:
    """Answers and problems by key; neither for pictures that were not tried after too many failures in a row."""
    answers: dict[str, Answer] = {}
    failed: dict[str, Problem] = {}
    in_a_row, enough = 0, max(_IN_A_ROW, parallel)
    with (
        warnings.catch_warnings(),
        contextlib.closing(endpoint),
        ThreadPoolExecutor(parallel) as pool,
    ):
        warnings.simplefilter("ignore")  # of Pillow on odd metadata; what matters here is a problem, not a warning
        try:
            futures = [pool.submit(_ask, endpoint, store, picture) for picture in missing]
            for key, result, asked in _progress(futures):
                if isinstance(result, Answer):
                    answers[key], in_a_row = result, 0
                elif result is not None:
                    failed[key], in_a_row = result, in_a_row + asked
                if in_a_row >= enough:
                    endpoint.pace.stop()
        except BaseException:
            endpoint.pace.stop()  # requests under way come to their end, and their answers are kept
            raise
    return answers, failed


def _ask(endpoint: Endpoint, store: Store, picture: _Picture) -> tuple[str, Answer | Problem | None, bool]:
    """Key, what became of the picture (None: not tried), and whether the endpoint was asked."""
    try:
        endpoint.pace.sleep(0)
        url = data_url(picture.root, picture.name, picture.sha256, endpoint.max_side)
        if isinstance(url, Problem):
            return picture.key, url, False
        result = endpoint.ask(url)
    except StoppedError:
        return picture.key, None, False
    except UserError:
        endpoint.pace.stop()  # here, so that not one request more is made
        raise
    if isinstance(result, Answer):
        store.write(picture.key, result)
    return picture.key, result, True


def _progress(futures: list[Future[Any]]) -> Iterator[Any]:
    """Results as they come, with a bar for a person or a line now and then for a log."""
    watched = sys.stderr.isatty()
    bar = tqdm(as_completed(futures), "pictures", len(futures), disable=not watched)
    last = time.monotonic()
    for done, future in enumerate(bar, 1):
        yield future.result()
        if not watched and time.monotonic() - last >= _EVERY:
            last = time.monotonic()
            _log.info("%d of %d pictures asked", done, len(futures))


def _summary(problems: list[Problem], unasked: int, cache: Path) -> UserError:
    kinds = Counter(problem.reason.split(":")[0] for problem in problems)
    counts = ", ".join(f"{count} x {kind}" for kind, count in kinds.most_common())
    lines = [str(problem).replace("\n", "\n  ") for problem in problems[:_LISTED]]
    lines += [f"... and {len(problems) - _LISTED} more"] if len(problems) > _LISTED else []
    lines += [f"{unasked} more were not asked about after too many failures in a row"] if unasked else []
    reason = f"pictures without questions and answers: {counts}\n  " + "\n  ".join(lines)
    advice = f"correct or remove these and run again; the other answers are kept in {cache} and not asked for again"
    return UserError(reason, advice)


def _write(
    output: Path, answers: dict[str, Answer], config: dict[str, Any], prompt: str, distinct: dict[str, Answer]
) -> None:
    usage = _sum(answer.usage for answer in distinct.values())
    counts = {"pictures": len(answers), "distinct": len(distinct), "pairs": len(answers) * config["pairs"]}
    asked = {name: config[name] for name in ("endpoint", "model", "pairs", "temperature", "max_side")}
    with staged_directory(output.parent) as directory:
        write_json(directory / "annotations.json", [_record(name, answer) for name, answer in answers.items()])
        write_manifest(directory, generated={**asked, "prompt": prompt}, counts=counts, usage=usage)
    tokens = ", ".join(f"{count} {name}" for name, count in usage.items()) or "not told by the server"
    _log.info("%(pairs)d questions about %(pictures)d pictures", counts)
    _log.info("tokens of these answers: %s. Look at some of them in %s", tokens, output.parent / "annotations.json")


def _sum(usages: Iterable[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for usage in usages:
        total.update(usage)
    return dict(total)


def _record(name: str, answer: Answer) -> dict[str, Any]:
    """One record in LLaVA's format; the picture stands before the first question."""
    turns = []
    for index, pair in enumerate(answer.pairs):
        turns.append({"from": "human", "value": ("" if index else "<image>\n") + pair["question"]})
        turns.append({"from": "gpt", "value": pair["answer"]})
    return {"id": name, "image": name, "conversations": turns}
