"""Answers of a checkpoint in, verdicts of a language model out, every verdict paid for once."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vlmflow.data.records import Image, Record, read_records
from vlmflow.endpoint.client import Endpoint
from vlmflow.endpoint.many import Asked, ask_all, failure, total
from vlmflow.endpoint.pictures import data_url
from vlmflow.errors import Problem
from vlmflow.evaluation.answers import prediction_lines, read_answers
from vlmflow.evaluation.judge.prompt import Prompt, Verdict, form, full_prompt, instructions
from vlmflow.evaluation.judge.store import Kept, Store
from vlmflow.files import read_manifest, write_json

_log = logging.getLogger(__name__)


class Item(NamedTuple):
    """An answer to judge, and the key of its verdict: equal ones have the same."""

    id: str
    question: str
    references: list[str]
    answer: str
    pictures: tuple[Image, ...]
    key: str


def judge_answers(
    config: dict[str, Any], limits: dict[str, Any], answers: list[Path], data: Path, cache: Path, output: Path
) -> None:
    """Let a model grade every answer of one checkpoint: scores from 0 (wrong) to 1 (right), each with a reason.

    ``config``: split and limit of the evaluation, and its ``judge`` node without ``limits``, which ``limits`` is;
    ``answers`` the files of all shards, ``data`` the manifest of the data set. Verdicts are kept in ``cache`` at once.
    Raises one :class:`UserError` that lists every record without a verdict, after all the others are done; at once
    when none can be judged.
    """
    read_manifest(data)
    records = read_records(data.parent / f"{config['split']}.jsonl")[: config["limit"]]
    lines = prediction_lines(records, read_answers(answers))
    judge, prompt = config["judge"], instructions(config["judge"]["prompt"])
    store = Store(cache, judge, prompt)
    items = [_item(record, line, store, judge["pictures"]) for record, line in zip(records, lines, strict=True)]
    kept, failed = _verdicts({item.key: item for item in reversed(items)}, judge, limits, prompt, store)
    problems = [
        dataclasses.replace(failed[item.key], file=str(answers[0].parent), record=item.id)
        for item in items
        if item.key in failed
    ]
    unasked = sum(item.key not in kept and item.key not in failed for item in items)
    if problems or unasked:
        raise failure("answers without a verdict", problems, unasked, "correct the cause", cache)
    _write(output, items, kept, judge, prompt)


def _item(record: Record, line: dict[str, Any], store: Store, pictures: bool) -> Item:
    question, answer = _sendable(_question(record)), _sendable(line["prediction"])
    references = [_sendable(text) for text in line.get("references", [line["reference"]])]
    seen = record.images if pictures else ()
    key = store.key(question, references, answer, [image.sha256 for image in seen])
    return Item(record.id, question, references, answer, seen, key)


def _sendable(text: str) -> str:
    """Text with ``?`` in place of halves of surrogate pairs, which no request can hold."""
    return text.encode("utf-8", "replace").decode()


def _question(record: Record) -> str:
    """What was asked, with the turns before it if there are any."""
    *before, last = record.turns[:-1]
    return "\n".join([*(f"{turn.role}: {turn.text}" for turn in before), f"user: {last.text}" if before else last.text])


def _verdicts(
    distinct: dict[str, Item], judge: dict[str, Any], limits: dict[str, Any], prompt: Prompt, store: Store
) -> tuple[dict[str, Kept], dict[str, Problem]]:
    """Verdicts and problems by key; neither for answers that were not tried after too many failures in a row."""
    kept = {key: verdict for key in distinct if (verdict := store.read(key)) is not None}
    missing = {key: item for key, item in distinct.items() if key not in kept}
    _log.info(
        "%d different answers: %d verdicts are there already, %d to ask for", len(distinct), len(kept), len(missing)
    )
    if not missing:
        return kept, {}
    endpoint = Endpoint(judge, limits, form(), "judge")
    ask = functools.partial(_ask, endpoint, store, prompt, judge["max_side"])
    new, failed = ask_all(missing, ask, endpoint, limits["parallel"], "answers")
    return kept | new, failed


def _ask(endpoint: Endpoint, store: Store, prompt: Prompt, max_side: int, key: str, item: Item) -> Asked:
    urls = _urls(item.pictures, max_side)
    if isinstance(urls, Problem):
        return urls, False
    reply = endpoint.ask(full_prompt(prompt, item.question, item.references, item.answer), urls)
    if isinstance(reply, Problem):
        return reply, True
    kept = Kept(*reply)
    store.write(key, kept)
    return kept, True


def _urls(pictures: Sequence[Image], max_side: int) -> list[str] | Problem:
    urls = []
    for image in pictures:
        path = Path(image.path).resolve()  # it may be a link within the data set
        url = data_url(path.parent, path.name, image.sha256, max_side)
        if isinstance(url, Problem):
            return url
        urls.append(url)
    return urls


def _write(output: Path, items: list[Item], kept: dict[str, Kept], judge: dict[str, Any], prompt: Prompt) -> None:
    verdicts: list[tuple[str, Verdict]] = [(item.id, kept[item.key].verdict) for item in items]
    facts = {
        **{name: judge[name] for name in ("endpoint", "model", "temperature", "pictures")},
        "prompt": {"name": prompt.name, "sha256": prompt.sha256},
        "n": len(items),
        "distinct": len(kept),
        "usage": total(one.usage for one in kept.values()),
    }
    write_json(output, {"facts": facts, "judged": [{"id": name, **verdict._asdict()} for name, verdict in verdicts]})
    mean = sum(verdict.score for _, verdict in verdicts) / len(verdicts) if verdicts else 0.0
    _log.info("%d answers judged by %s: mean %.3f, tokens %s", len(items), judge["model"], mean, facts["usage"])
