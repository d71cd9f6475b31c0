"""The generation stage: pictures in, annotations out, every answer paid for once."""

from __future__ import annotations

import dataclasses
import functools
import logging
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from vlmflow.data.generate.answer import read_pairs
from vlmflow.data.generate.pictures import find_pictures
from vlmflow.data.generate.prompt import answer_schema, prompt_text, spelled_out
from vlmflow.data.generate.store import Answer, Store
from vlmflow.data.report import shown
from vlmflow.endpoint.client import Endpoint, Form
from vlmflow.endpoint.many import Asked, ask_all, failure, total
from vlmflow.endpoint.pictures import data_url
from vlmflow.errors import Problem
from vlmflow.files import sha256_file, staged_directory, write_json, write_manifest

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
    missing = {key: picture for key, picture in reversed(distinct.items()) if key not in answers}
    _log.info("%d pictures: %d answers are there already, %d to ask for", len(found), len(answers), len(missing))
    failed: dict[str, Problem] = {}
    if missing:
        endpoint = Endpoint(config, limits, _form(config["pairs"]), "generate")
        ask = functools.partial(_ask, endpoint, store, prompt, config["max_side"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow on odd metadata; a problem matters here, not a warning
            new, failed = ask_all(missing, ask, endpoint, limits["parallel"], "pictures")
        answers |= new
    lost = [dataclasses.replace(failed[p.key], file=shown(p.path, 200)) for p in pictures if p.key in failed]
    problems += unreadable + lost
    unasked = sum(picture.key not in answers and picture.key not in failed for picture in pictures)
    if problems or unasked:
        raise failure("pictures without questions and answers", problems, unasked, "correct or remove these", cache)
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


def _form(pairs: int) -> Form:
    advice = "use a stronger model, fewer `pairs` or another prompt"
    read = functools.partial(read_pairs, count=pairs)
    return Form("questions_and_answers", answer_schema(pairs), spelled_out(pairs), read, advice)


def _ask(endpoint: Endpoint, store: Store, prompt: str, max_side: int, key: str, picture: _Picture) -> Asked:
    url = data_url(picture.root, picture.name, picture.sha256, max_side)
    if isinstance(url, Problem):
        return url, False
    reply = endpoint.ask(prompt, [url])
    if isinstance(reply, Problem):
        return reply, True
    answer = Answer(*reply)
    store.write(key, answer)
    return answer, True


def _write(
    output: Path, answers: dict[str, Answer], config: dict[str, Any], prompt: str, distinct: dict[str, Answer]
) -> None:
    usage = total(answer.usage for answer in distinct.values())
    counts = {"pictures": len(answers), "distinct": len(distinct), "pairs": len(answers) * config["pairs"]}
    asked = {name: config[name] for name in ("endpoint", "model", "pairs", "temperature", "max_side")}
    with staged_directory(output.parent) as directory:
        write_json(directory / "annotations.json", [_record(name, answer) for name, answer in answers.items()])
        write_manifest(directory, generated={**asked, "prompt": prompt}, counts=counts, usage=usage)
    tokens = ", ".join(f"{count} {name}" for name, count in usage.items()) or "not told by the server"
    _log.info("%(pairs)d questions about %(pictures)d pictures", counts)
    _log.info("tokens of these answers: %s. Look at some of them in %s", tokens, output.parent / "annotations.json")


def _record(name: str, answer: Answer) -> dict[str, Any]:
    """One record in LLaVA's format; the picture stands before the first question."""
    turns = []
    for index, pair in enumerate(answer.pairs):
        turns.append({"from": "human", "value": ("" if index else "<image>\n") + pair["question"]})
        turns.append({"from": "gpt", "value": pair["answer"]})
    return {"id": name, "image": name, "conversations": turns}
