"""How fast questions are answered: in transformers one by one and in batches, by LMDeploy's pipeline, by ours on it.

    python benchmarks/evaluation_speed.py --work FOLDER [--questions 256] [--batches 1 16] [--engines transformers]
    python benchmarks/evaluation_speed.py --work FOLDER --tiny --engines transformers          (a CPU, 2 minutes)

Model: InternVL2-2B's shape with random weights (--tiny: the same with few narrow layers). Questions: real JPEGs of
1344 x 896 pixels (7 tiles, 1,792 tokens) and some words; every answer has --new-tokens tokens, as random weights hardly
ever end one. `bare` is `lmdeploy.pipeline` as its users call it: the list of all conversations, pictures by path, in
its own time; `ours` is the project's back end with its store of answers on the same started engine, by turns with it.
Start-up is not counted. Prints questions per second and ratios.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "workflow"), str(HERE.parent / "tests")]

from train_data import photograph  # noqa: E402
from train_model import make_model  # noqa: E402

from vlmflow.data.records import Image, Record, Turn  # noqa: E402
from vlmflow.evaluation.engines import Engine, Settings, Source  # noqa: E402
from vlmflow.evaluation.engines.transformers import TransformersEngine  # noqa: E402
from vlmflow.evaluation.questions import Question, questions_of  # noqa: E402
from vlmflow.evaluation.store import AnswerStore  # noqa: E402
from vlmflow.files import sha256_file  # noqa: E402

_SIZE, _TINY = (1344, 896), (168, 112)
_LMDEPLOY = {"cache_share": 0.5, "cache_bits": 16, "max_batch_size": None}
_WORDS = (
    "what",
    "is",
    "the",
    "colour",
    "of",
    "thing",
    "on",
    "left",
    "and",
    "how",
    "many",
    "are",
    "there",
    "in",
    "this",
)


def make_questions(folder: Path, count: int, pictures: int, size: tuple[int, int]) -> list[Question]:
    """``count`` different questions about ``pictures`` JPEGs by turns."""
    folder.mkdir(parents=True, exist_ok=True)
    images = []
    for index in range(pictures):
        path = folder / f"{index}.jpg"
        if not path.is_file():
            photograph(size, np.random.default_rng(index)).save(path, quality=85)
        images.append(Image(str(path), *size, sha256_file(path)))
    draw = np.random.default_rng(0)
    records = [
        Record(
            f"q{index}",
            (images[index % pictures],),
            (Turn("user", f"<image>\n{index}: {' '.join(draw.choice(_WORDS, 24))}?"), Turn("assistant", "x")),
        )
        for index in range(count)
    ]
    return questions_of(records, None, "model-benchmark")


def answer_all(engine: Engine, questions: list[Question], cache: Path) -> None:
    """As a stage does it: every group of answers goes to the disk when it is there."""
    with AnswerStore(cache, {"run": time.monotonic_ns()}, "all") as store:
        for group in engine.answer(questions, ()):
            if group:
                store.add(group)
        assert len(store.known) == len(questions)


def rate(count: int, work: Callable[[], object]) -> float:
    """Questions per second."""
    started = time.monotonic()
    work()
    return count / (time.monotonic() - started)


def run_transformers(source: Source, settings: Settings, questions: list[Question], batch: int, cache: Path) -> float:
    """Questions per second in batches of ``batch``, after one batch that does not count."""
    gc.collect()  # what the last one held
    torch.cuda.empty_cache()
    engine = TransformersEngine(source, settings, batch)
    answer_all(engine, questions[:batch], cache)
    return rate(len(questions), lambda: answer_all(engine, questions, cache))


def run_lmdeploy(
    source: Source, settings: Settings, questions: list[Question], cache: Path, gpus: int
) -> dict[str, float]:
    """Medians of three runs of each, by turns, on one engine."""
    from lmdeploy import GenerationConfig

    from vlmflow.evaluation.engines.lmdeploy import LmdeployEngine

    started = time.monotonic()
    engine = LmdeployEngine(source, settings, _LMDEPLOY, gpus)
    print(f"LMDeploy started in {time.monotonic() - started:.0f} s", flush=True)
    pipe = engine.pipe
    own, greedy = pipe.async_engine.prompt_processor, GenerationConfig(max_new_tokens=settings.max_new_tokens)
    ours = own.get_prompt_input
    conversations = [_conversation(question) for question in questions]

    def bare() -> None:
        del own.get_prompt_input  # what LMDeploy does itself
        answers = pipe(conversations, gen_config=greedy)
        own.get_prompt_input = ours
        assert all(answer.generate_token_len for answer in answers)

    runs: dict[str, list[float]] = {"bare": [], "ours": []}
    work = {"bare": bare, "ours": lambda: answer_all(engine, questions, cache)}
    for turn in range(4):
        for name, each in work.items():
            measured = rate(len(questions), each)
            print(f"  {name}: {measured:.2f} questions/s{' (not counted)' if turn == 0 else ''}", flush=True)
            runs[name] += [measured] if turn else []
    engine.close()
    return {name: statistics.median(values) for name, values in runs.items()}


def _conversation(question: Question) -> list[dict[str, Any]]:
    """In OpenAI's form, as LMDeploy's guides show it."""
    text = question.turns[-1].text.removeprefix("<image>\n")
    picture = {"type": "image_url", "image_url": {"url": question.record.images[0].path}}
    return [{"role": "user", "content": [picture, {"type": "text", "text": text}]}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 16])
    parser.add_argument(
        "--engines", nargs="*", choices=("transformers", "lmdeploy"), default=["transformers", "lmdeploy"]
    )
    parser.add_argument("--gpus", type=int, default=1, help="that LMDeploy spreads one model over")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    size = _TINY if options.tiny else _SIZE
    source = Source(make_model("internvl2-2b", options.work / "model", options.tiny))
    settings, cache = Settings(options.new_tokens, None), options.work / "cache"
    questions = make_questions(options.work / "pictures", options.questions, min(64, options.questions), size)
    found: dict[str, float] = {}
    if "lmdeploy" in options.engines:
        found |= run_lmdeploy(source, settings, questions, cache, options.gpus)
    for batch in options.batches if "transformers" in options.engines else ():
        some = questions[: max(8, min(len(questions), 8 * batch))]
        found[f"transformers, {batch} at once"] = run_transformers(source, settings, some, batch, cache)
    print_table(found)


def print_table(found: dict[str, float]) -> None:
    """Questions per second, and against the slowest way and LMDeploy alone."""
    slowest = min(found.values())
    print(f"{'':28}{'questions/s':>12}{'ratio':>8}{'to bare':>9}")
    for name, value in found.items():
        against = f"{value / found['bare']:9.2f}" if "bare" in found else ""
        print(f"{name:28}{value:12.2f}{value / slowest:8.2f}{against}", flush=True)


if __name__ == "__main__":
    main()
