"""Does a merged model directory answer alike in transformers and in LMDeploy?

    python benchmarks/engines.py --family both --prompts 64 --output FOLDER [--engines transformers]

Makes a small model of each family with the project's own stages and really trains it, then answers prompts of eight
kinds greedily in transformers and in LMDeploy's PyTorch engine, from the merged and from the converted directory.
Compared are the token ids of the prompts (the project's, AutoProcessor's, LMDeploy's) and of the answers. Writes
engines.json and prints a table; ends with 1 if prompts differ or fewer than 95% of the answers are equal.
LMDeploy runs on a GPU only; ``--engines transformers`` does the rest anywhere.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import logging
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "workflow"), str(HERE.parent / "tests")]

from engines_data import make_records  # noqa: E402
from engines_model import make_directories  # noqa: E402
from engines_transformers import Answer, answer_all, end_tokens, plain_load, stored_dtype, without_end  # noqa: E402

from vlmflow.data.records import Record  # noqa: E402
from vlmflow.files import write_json  # noqa: E402

TARGET = 0.95
"""Least share of equal greedy answers."""
_MAX_NEW_TOKENS = 48
_PATIENCE = 240
"""Seconds that LMDeploy may take to start and answer."""
_LEARNT = 0.8
"""Least share of right answers of a model that has learnt its task: otherwise its answers are near ties."""
_PACKAGES = ("torch", "transformers", "peft", "torchvision", "lmdeploy", "tokenizers", "pillow")


def compare_family(family: str, options: argparse.Namespace) -> dict[str, Any]:
    """Everything about one family."""
    folder, started = options.output / family, time.monotonic()
    made = make_directories(family, folder, options.records, options.epochs)
    records = make_records(folder / "questions", options.prompts, seed=1)
    result: dict[str, Any] = {"making_seconds": round(time.monotonic() - started, 1)}
    for name, manifest in made._asdict().items():
        result[name] = compare_directory(manifest, records, folder / name, options.engines == "both")
    return result


def compare_directory(manifest: Path, records: list[Record], work: Path, with_lmdeploy: bool) -> dict[str, Any]:
    """One model directory in every engine."""
    dtype = stored_dtype(manifest) if torch.cuda.is_available() else "float32"
    ours = answer_all(manifest, records, _MAX_NEW_TOKENS, dtype)
    right = [answer.text == record.turns[-1].text for answer, record in zip(ours, records, strict=True)]
    result: dict[str, Any] = {
        "prompts": len(records),
        "dtype": dtype,
        "right_answers": share(right),
        "smallest_margin": min(min(answer.margins) for answer in ours),
        "transformers_alone": guarded(lambda: _transformers_alone(manifest, records, ours, dtype)),
    }
    if with_lmdeploy:
        result["lmdeploy"] = guarded(lambda: _lmdeploy(manifest, records, ours, work))
    return result


def _transformers_alone(manifest: Path, records: list[Record], ours: list[Answer], dtype: str) -> dict[str, Any]:
    plain = plain_load(manifest.parent, records, _MAX_NEW_TOKENS, dtype)
    texts = [text == answer.text for text, answer in zip(plain["texts"], ours, strict=True)]
    prompts = prompt_figures(records, [answer.prompt for answer in ours], plain["prompts"])
    return {**prompts, "equal_answers": share(texts), "pictures_by": plain["pictures_by"]}


def _lmdeploy(manifest: Path, records: list[Record], ours: list[Answer], work: Path) -> dict[str, Any]:
    questions, answers = work.with_suffix(".questions.json"), work.with_suffix(".lmdeploy.json")
    questions.write_text(json.dumps([openai_messages(record) for record in records]), encoding="utf-8")
    log = work.with_suffix(".lmdeploy.log")
    script = [sys.executable, str(HERE / "engines_lmdeploy.py")]
    command = [*script, str(manifest.parent), str(questions), str(answers), str(_MAX_NEW_TOKENS)]
    with log.open("w") as stream, contextlib.suppress(subprocess.TimeoutExpired):  # it may hang after its work
        subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, timeout=_PATIENCE, check=False)
    if not answers.is_file():
        raise RuntimeError(f"LMDeploy gave no answers: {log.read_text(errors='replace')[-3000:]}")
    facts = json.loads(answers.read_text(encoding="utf-8"))
    theirs = facts.pop("answers")
    tokens = [without_end(answer["tokens"], end_tokens(manifest)) for answer in theirs]
    return {
        **facts,
        **prompt_figures(records, [answer.prompt for answer in ours], [answer["prompt"] for answer in theirs]),
        "equal_answers": share([answer.tokens == other for answer, other in zip(ours, tokens, strict=True)]),
        "differences": [
            difference(record, answer, other) for record, answer, other in zip(records, ours, tokens, strict=True)
            if answer.tokens != other
        ],
    }  # fmt: skip


def openai_messages(record: Record) -> list[dict[str, Any]]:
    """The conversation as OpenAI's clients send it; pictures stand first, where LMDeploy puts LLaVA's in any case."""
    paths = iter(image.path for image in record.images)
    messages: list[dict[str, Any]] = []
    for turn in record.turns[:-1]:
        count = turn.text.count("<image>\n")
        parts: list[dict[str, Any]] = [{"type": "image", "path": next(paths)} for _ in range(count)]
        text = turn.text.replace("<image>\n", "")
        messages.append({"role": turn.role, "content": [*parts, {"type": "text", "text": text}] if parts else text})
    return messages


def prompt_figures(records: Sequence[Record], ours: list[list[int]], theirs: list[list[int]]) -> dict[str, Any]:
    """Share of prompts whose token ids are equal, and the first pair of each kind that is not."""
    equal = [one == other for one, other in zip(ours, theirs, strict=True)]
    unequal: dict[str, Any] = {}
    for record, one, other in zip(records, ours, theirs, strict=True):
        if one != other:
            unequal.setdefault(str(record.category), {"ours": one, "theirs": other})
    return {"equal_prompts": share(equal), "unequal_prompts": unequal}


def difference(record: Record, ours: Answer, theirs: list[int]) -> dict[str, Any]:
    """Where two answers part, and how sure transformers was there."""
    pairs = zip(ours.tokens, theirs, strict=False)
    place = next(
        (index for index, (one, other) in enumerate(pairs) if one != other), min(len(ours.tokens), len(theirs))
    )
    return {
        "record": record.id,
        "kind": record.category,
        "position": place,
        "transformers": ours.tokens[place : place + 1],
        "lmdeploy": theirs[place : place + 1],
        "margin": round(ours.margins[place], 4),
        "text": ours.text,
    }


def share(flags: Sequence[bool]) -> float:
    return round(sum(flags) / len(flags), 4)


def guarded(measure: Any) -> dict[str, Any]:
    """The figures, or what went wrong: one engine that fails must not hide the others' results."""
    try:
        return dict(measure())
    except Exception as error:
        logging.exception("failed")
        return {"error": f"{type(error).__name__}: {error}"}


def missed(families: dict[str, Any]) -> list[str]:
    """The targets that were not reached."""
    found = []
    for family, directories in families.items():
        for name in ("merged", "converted"):
            if directories[name]["right_answers"] < TARGET:
                found.append(
                    f"{family} {name}: the model has not learnt its task ({directories[name]['right_answers']})"
                )
            for engine in ("transformers_alone", "lmdeploy"):
                figures = directories[name].get(engine, {"equal_prompts": 1, "equal_answers": 1})
                if "error" in figures:
                    found.append(f"{family} {name} {engine}: {figures['error'][:300]}")
                elif figures["equal_prompts"] < 1 or figures["equal_answers"] < TARGET:
                    shares = f"prompts {figures['equal_prompts']}, answers {figures['equal_answers']}"
                    found.append(f"{family} {name} {engine}: {shares}")
    return found


def versions() -> dict[str, str]:
    """Of the packages that matter, and the hardware."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    return {**found, "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"}


def print_table(families: dict[str, Any]) -> None:
    """A line for each directory and engine."""
    print(f"{'family':9} {'directory':10} {'engine':19} {'dtype':15} {'prompts':>8} {'answers':>8}")
    for family, directories in families.items():
        for name in ("merged", "converted"):
            found = directories[name]
            head = f"{family:9} {name:10}"
            print(f"{head} {'vlmflow':19} {found['dtype']:15} {'':8} {found['right_answers']:8.1%} right")
            for engine in ("transformers_alone", "lmdeploy"):
                if (figures := found.get(engine)) is None:
                    continue
                if "error" in figures:
                    print(f"{head} {engine:19} failed: {figures['error'][-200:]}")
                    continue
                dtype = figures.get("dtype", found["dtype"])
                prompts, answers = figures["equal_prompts"], figures["equal_answers"]
                print(f"{head} {engine:19} {dtype:15} {prompts:8.1%} {answers:8.1%} equal")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=("llava", "internvl", "both"), default="both")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--output", type=Path, required=True, help="a new folder")
    parser.add_argument("--engines", choices=("both", "transformers"), default="both")
    parser.add_argument("--records", type=int, default=1536, help="training records")
    parser.add_argument("--epochs", type=float, default=10)
    options = parser.parse_args()
    options.output = options.output.resolve()
    chosen = ("llava", "internvl") if options.family == "both" else (options.family,)
    families = {family: compare_family(family, options) for family in chosen}
    problems = missed(families)
    write_json(options.output / "engines.json", {"versions": versions(), "families": families, "missed": problems})
    print_table(families)
    print("\n".join(problems) or "all targets reached")
    raise SystemExit(1 if problems else 0)


if __name__ == "__main__":
    main()
