"""Records per second of counting tokens, against encoding record by record; tiny tokenizer (a token per byte)."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "workflow"), str(ROOT / "tests")]

from conftest import tiny_tokenizer  # noqa: E402
from vlmflow.data.records import Turn  # noqa: E402
from vlmflow.models import template  # noqa: E402
from vlmflow.models.template_spans import answer_spans  # noqa: E402

RECORDS, BATCH = 3000, 512


def conversations() -> list[list[Turn]]:
    """Lengths as in LLaVA's mix: a few pairs, most answers short, some long."""
    draw = random.Random(0)
    words = [
        "what",
        "is",
        "the",
        "colour",
        "of",
        "large",
        "bus",
        "in",
        "this",
        "picture",
        "near",
        "people",
        "standing",
        "with",
        "umbrella",
    ]
    made = []
    for _ in range(RECORDS):
        turns = []
        for pair in range(max(1, min(20, round(draw.lognormvariate(1.2, 0.7))))):
            question = " ".join(draw.choices(words, k=10))
            turns += [Turn("user", question if pair else f"<image>\n{question}")]
            turns += [Turn("assistant", " ".join(draw.choices(words, k=draw.choice([2, 10, 40]))))]
        made.append(turns)
    return made


def rate(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return RECORDS / (time.perf_counter() - start)


def main() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([template.PLACEHOLDER], special_tokens=True)
    tokenizer.chat_template = template.chat_template("chatml")
    made = conversations()

    def every_prefix() -> None:
        """As it was before: each beginning of a conversation rendered, offsets of every token."""
        for turns in made:
            text = template.render(tokenizer, turns, answer=False)
            spans = answer_spans(tokenizer, turns, text)
            tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            pairs = zip(tokens["input_ids"], tokens["offset_mapping"], strict=True)
            [token if any(s <= a and b <= e for s, e in spans) else -100 for token, (a, b) in pairs]

    def counted() -> None:
        for start in range(0, RECORDS, BATCH):
            template.count(tokenizer, made[start : start + BATCH])

    def encoded() -> None:
        for turns in made:
            template.encode(tokenizer, turns, [9])

    counted()
    for name, work in (("every prefix", every_prefix), ("encode", encoded), ("count, batched", counted)):
        print(f"{name:15} {rate(work):7.0f} records/s")


if __name__ == "__main__":
    main()
