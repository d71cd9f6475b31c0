"""What each published model needs of a GPU, by the estimate that training itself goes by; no GPU, no download.

    python benchmarks/sizes.py

Least memory (one record at a time, all layers computed twice), and hours for 100,000 samples on one A100 of 80 GB with
the split that would be chosen there. Estimates are within 11% of fourteen measured runs (tests/unit/test_estimate.py).
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("workflow", "tests", "tests/unit")]

from test_published import native, published_names  # noqa: E402

from vlmflow.cost.estimate import GIB  # noqa: E402
from vlmflow.cost.shape import Shape  # noqa: E402
from vlmflow.cost.speed import card_named, seconds  # noqa: E402
from vlmflow.cost.split import Case, choose  # noqa: E402
from vlmflow.cost.workload import ALONE, Training  # noqa: E402
from vlmflow.errors import UserError  # noqa: E402

METHODS = {
    "qlora": Training(rank=64, dropout=True, quantised=True),
    "lora": Training(rank=64, dropout=True),
    "full": Training(language=True),
}
TALK = 256
"""Tokens of text with each picture, half of them learnt."""
TILES = {"internvl": 7, "llava": 1}
PATCHES_PER_TOKEN = {"internvl": 4, "llava": 1}
BATCH, SAMPLES = 16, 100_000
CARD = card_named("A100-80")


def row(name: str) -> str:
    """A line of the table."""
    config = native(name)
    shape = Shape.of(config.to_dict())
    tiles = TILES[config.model_type]
    tokens = tiles * shape.tower.patches // PATCHES_PER_TOKEN[config.model_type] + TALK
    longest = (tokens, tiles, TALK // 2)
    cells = []
    for training in METHODS.values():
        case = Case(shape, training, longest, 0.0, BATCH, ALONE)
        least = case.memory(case.smallest).total / GIB
        try:
            split = choose(shape, training, longest, 0.92 * CARD.memory, BATCH)
        except UserError:
            cells.append(f"{least:.0f} GiB")
            continue
        rows = split.micro_batch_size
        time = seconds(shape, training, CARD, rows * tokens, rows * tokens**2 / 2, rows * tiles, rows * TALK // 2,
                       split.checkpointed_layers)  # fmt: skip
        cells.append(f"{least:.0f} GiB, {SAMPLES / rows * time / 3600:.0f} h")
    return f"| {name} | {tokens} | {' | '.join(cells)} |"


if __name__ == "__main__":
    print(f"| model | tokens of a sample | {' | '.join(METHODS)} |\n|---|---|{'---|' * len(METHODS)}")
    for model in published_names():
        print(row(model))
