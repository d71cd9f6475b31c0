"""Tokens that are computed per sample: padding in random order, padding with length grouping, packing. Needs no GPU.

    python benchmarks/packing.py [--longest 4 8 16] [--processes 2] [--steps 200] [--seed 0]

Global batches of 128 samples. A micro-batch has room for `longest` samples of the greatest length that the mixture has:
that many samples are padded to the longest of them, or as many as fit are packed.

The lengths are drawn. What is published of LLaVA-1.5's mix of 665k conversations (Liu et al. 2023, table 7) are its
parts and how many conversations each has: 6% are text only. Question-answer pairs per conversation and tokens per pair
are set here to suit the kind of each part; pairs are 1 + Poisson, tokens per pair log-normal. LLaVA: 576 tokens a
picture, cut off at 2048. InternVL: the same conversations, 1 to 13 tiles of 256 tokens; photographs of 4:3 get 12 tiles
and the thumbnail.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow"))
from vlmflow.training.packing import pack_step

GLOBAL_BATCH = 128
SYSTEM_PROMPT = 40
PARTS = (  # thousands of conversations, mean pairs, median tokens of a pair and their log-normal spread, picture
    (58, 4.5, 65, 0.5, True),  # LLaVA conversation
    (23, 1.0, 130, 0.3, True),  # LLaVA detail
    (77, 1.0, 190, 0.4, True),  # LLaVA reasoning
    (83, 5.4, 18, 0.2, True),  # VQAv2
    (72, 10.0, 18, 0.2, True),  # GQA
    (9, 1.5, 20, 0.2, True),  # OKVQA
    (80, 5.0, 22, 0.3, True),  # OCRVQA
    (66, 1.0, 60, 0.3, True),  # A-OKVQA
    (22, 1.0, 70, 0.3, True),  # TextCaps
    (48, 5.0, 40, 0.2, True),  # RefCOCO
    (86, 9.0, 40, 0.2, True),  # Visual Genome
    (40, 3.5, 320, 0.8, False),  # ShareGPT
)


@dataclass(frozen=True)
class Lengths:
    """Tokens, pictures included, and tiles of samples: (samples,) each."""

    tokens: np.ndarray
    tiles: np.ndarray


@dataclass(frozen=True)
class Mixture:
    """Conversations as in LLaVA's mix with pictures of ``tiles`` tiles, as often as ``shares`` say."""

    tile_tokens: int
    tiles: tuple[int, ...]
    shares: tuple[float, ...]
    max_text: int

    def draw(self, count: int, random: np.random.Generator) -> Lengths:
        weights, pairs, median, spread, picture = np.array(PARTS).T
        part = random.choice(len(PARTS), count, p=weights / weights.sum())
        text = (1 + random.poisson(pairs[part] - 1)) * random.lognormal(np.log(median[part]), spread[part])
        tiles = np.where(picture[part] > 0, random.choice(self.tiles, count, p=self.shares), 0)
        room = np.where(tiles > 0, self.max_text - 576, self.max_text)
        return Lengths(np.minimum(SYSTEM_PROMPT + text.astype(int), room) + tiles * self.tile_tokens, tiles)


MIXTURES = {
    "llava": Mixture(576, (1,), (1.0,), 2048),
    "internvl": Mixture(256, (1, 3, 5, 7, 9, 13), (0.1, 0.1, 0.05, 0.3, 0.05, 0.4), 2048),
}
MicroBatches = list[np.ndarray]  # of one optimizer step: the lengths of the samples of each


def padded(batches: MicroBatches) -> int:
    return sum(len(each) * int(each.max()) for each in batches)


def random_order(tokens: np.ndarray, size: int) -> Iterator[MicroBatches]:
    for step in tokens.reshape(-1, GLOBAL_BATCH):
        yield [step[start : start + size] for start in range(0, GLOBAL_BATCH, size)]


def llava_grouping(tokens: np.ndarray, tiles: np.ndarray, size: int) -> Iterator[MicroBatches]:
    """LLaVA's sampler: steps of one modality; their samples, longest first, each to the shortest micro-batch so far."""
    for modality in (tiles > 0, tiles == 0):
        kept = tokens[modality]
        for step in kept[: len(kept) // GLOBAL_BATCH * GLOBAL_BATCH].reshape(-1, GLOBAL_BATCH):
            chunks: list[list[int]] = [[] for _ in range(-(-GLOBAL_BATCH // size))]
            for length in sorted(step.tolist(), reverse=True):
                min((chunk for chunk in chunks if len(chunk) < size), key=sum).append(length)
            yield [np.array(chunk) for chunk in chunks]


def sorted_grouping(tokens: np.ndarray, size: int) -> Iterator[MicroBatches]:
    """Sorted over 50 global batches, as transformers' `group_by_length` and XTuner do: a step's samples are alike."""
    for start in range(0, len(tokens), 50 * GLOBAL_BATCH):
        yield from random_order(np.sort(tokens[start : start + 50 * GLOBAL_BATCH])[::-1], size)


def busiest(step: list[list[list[int]]], tokens: np.ndarray) -> float:
    """The most tokens that a process has, by their mean over the processes."""
    totals = [sum(int(tokens[each].sum()) for each in own) for own in step]
    return max(totals) / float(np.mean(totals))


def measure(mixture: Mixture, steps: int, longest: int, processes: int, seed: int) -> None:
    lengths = mixture.draw(steps * GLOBAL_BATCH, np.random.default_rng(seed))
    tokens, tiles = lengths.tokens, lengths.tiles
    max_tokens = longest * int(tokens.max())
    padding = {
        "padding, random order": random_order(tokens, longest),
        "padding, LLaVA's length grouping": llava_grouping(tokens, tiles, longest),
        "padding, sorted over 50 global batches": sorted_grouping(tokens, longest),
    }
    print(f"  micro-batches of {longest} x {tokens.max()} = {max_tokens} tokens")
    for name, generator in padding.items():
        made = list(generator)
        computed = sum(map(padded, made)) / (len(made) * GLOBAL_BATCH)
        report(name, computed, computed / tokens.mean(), len(made[0]))
    by_step = tokens.reshape(-1, GLOBAL_BATCH)
    most = max_tokens // mixture.tile_tokens  # a frozen tower takes its tiles in portions: their tokens are the limit
    packed = [
        pack_step(*step, processes, max_tokens, most)
        for step in zip(by_step, tiles.reshape(by_step.shape), strict=True)
    ]
    report("packing", tokens.mean(), 1.0, processes * float(np.mean([len(step[0]) for step in packed])))
    waiting = np.mean([busiest(step, each) for step, each in zip(packed, by_step, strict=True)]) - 1
    print(f"    the busiest of {processes} processes has {waiting:.2%} more tokens than their mean")


def report(name: str, computed: float, ratio: float, count: float) -> None:
    print(f"    {name:40} {computed:5.0f} tokens a sample   x {ratio:.2f}   {count:5.1f} micro-batches a step")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("steps", 200), ("processes", 2), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--longest", type=int, nargs="+", default=[4, 8, 16])
    arguments = parser.parse_args()
    for name, mixture in MIXTURES.items():
        drawn = mixture.draw(arguments.steps * GLOBAL_BATCH, np.random.default_rng(arguments.seed))
        quantiles = np.percentile(drawn.tokens, [10, 50, 90, 100]).astype(int)
        print(f"{name}: {drawn.tokens.mean():.0f} tokens a sample; at most {quantiles.tolist()} in 10, 50, 90, 100%; "
              f"{np.mean(drawn.tiles == 0):.1%} text only")  # fmt: skip
        for longest in arguments.longest:
            measure(mixture, arguments.steps, longest, arguments.processes, arguments.seed)


if __name__ == "__main__":
    main()
