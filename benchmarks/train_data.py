"""Data sets for the training benchmarks: real JPEGs and texts of exact length, counted by the project's own stage.

    python benchmarks/train_data.py --data tiles7 --model DIRECTORY/model/manifest.json --output DIRECTORY [--tiny]

``tiles7``  one 1344 x 896 picture (7 tiles of InternVL) and 256 text tokens, 128 of them supervised
``llava``   one picture, the shorter side 336 pixels as in LLaVA's pretraining data, and about 40 text tokens, half of
            them supervised
``mix``     lengths like LLaVA's instruction mix: 6% text alone (log-normal, median 600 tokens), else a picture of
            640 x 480 and a log-normal conversation (median 150 tokens) of one to several turns
Pictures are noise with a photograph's spectrum. Text is random letters: the models' tokenizers know bytes.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image as Pictures

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "workflow"))

from vlmflow.data.records import Image, Record, Turn, write_records  # noqa: E402
from vlmflow.files import sha256_file, write_manifest  # noqa: E402
from vlmflow.models.directory import load_processor  # noqa: E402
from vlmflow.models.template import count  # noqa: E402
from vlmflow.tokens.count import count_tokens  # noqa: E402

_QUALITY = 85
_MAX_LENGTH = 4096
_TEXT_ONLY, _LONGEST_TEXT = 0.06, 1800
_LETTERS = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz      ", np.uint8)
Size = tuple[int, int]


class Need(NamedTuple):
    """What one record is to have; numbers of tokens without those of the picture, template included."""

    text: int
    supervised: int
    picture: bool = True
    turns: int = 1


def _tiles7(draw: np.random.Generator) -> Need:
    del draw
    return Need(256, 128)


def _llava(draw: np.random.Generator) -> Need:
    del draw
    return Need(40, 20)


def _mix(draw: np.random.Generator) -> Need:
    picture = bool(draw.random() >= _TEXT_ONLY)
    median, spread = (150, 0.8) if picture else (600, 0.8)
    text = int(np.clip(draw.lognormal(math.log(median), spread), 40, _LONGEST_TEXT))
    turns = min(int(draw.geometric(0.4)), text // 40)
    return Need(text, int(0.5 * text), picture, turns)


_NEEDS: dict[str, Callable[[np.random.Generator], Need]] = {"tiles7": _tiles7, "llava": _llava, "mix": _mix}
DATA = tuple(_NEEDS)


def make_data(kind: str, model: Path, folder: Path, records: int, pictures: int, tiny: bool = False) -> Path:
    """Counted training records for ``model`` (manifest) below ``folder`` unless they are there; returns their manifest.

    ``pictures``: different ones; they come by turns.
    """
    tokens = folder / "tokens" / "manifest.json"
    if tokens.is_file():
        return tokens
    data, draw = folder / "data", np.random.default_rng(0)
    images = _make_pictures(kind, folder / "pictures", pictures, tiny)
    tokenizer = load_processor(model).tokenizer
    made = []
    for index in range(records):
        need = _NEEDS[kind](draw)
        shown = (images[index % len(images)],) if need.picture else ()
        made.append(Record(f"r{index}", shown, _conversation(tokenizer, need, draw)))
    write_records(data / "train.jsonl", made)
    for split in ("validation", "test"):
        write_records(data / f"{split}.jsonl", [])
    write_manifest(data)
    counting = {"max_length": _MAX_LENGTH, "too_long": "error", "max_dropped": 0, "datasets": [kind]}
    count_tokens(counting, model, [data / "manifest.json"], tokens)
    return tokens


def _conversation(tokenizer: Any, need: Need, draw: np.random.Generator) -> tuple[Turn, ...]:
    """Turns with exactly the tokens that are needed, as long as the template leaves room for a letter in each."""
    first = "<image>\n" if need.picture else ""
    empty = [Turn(role, "") for _ in range(need.turns) for role in ("user", "assistant")]
    empty[0] = Turn("user", first)
    around = count(tokenizer, [empty])[0]
    answers = max(need.turns, need.supervised - around.supervised)
    questions = max(need.turns, need.text - around.text - answers)
    turns = []
    for index in range(need.turns):
        asked, answered = (part // need.turns + (index < part % need.turns) for part in (questions, answers))
        turns += [Turn("user", (first if not index else "") + _text(asked, draw)),
                  Turn("assistant", _text(answered, draw))]  # fmt: skip
    return tuple(turns)


def _text(length: int, draw: np.random.Generator) -> str:
    """Letters and single spaces inside; templates may strip the ends."""
    text = draw.choice(_LETTERS, length)
    text[[0, -1]] = ord("x")
    return bytes(text).decode()


def _make_pictures(kind: str, folder: Path, number: int, tiny: bool) -> list[Image]:
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(partial(_make_picture, kind, folder, tiny), range(number), chunksize=4))


def _make_picture(kind: str, folder: Path, tiny: bool, index: int) -> Image:
    draw = np.random.default_rng(index)
    width, height = _size(kind, draw)
    size = (width // 8, height // 8) if tiny else (width, height)
    path = folder / f"{index}.jpg"
    photograph(size, draw).save(path, quality=_QUALITY)
    return Image(str(path.resolve()), *size, sha256_file(path))


def _size(kind: str, draw: np.random.Generator) -> Size:
    if kind == "tiles7":
        return 1344, 896
    sizes = (336, int(draw.integers(336, 505))) if kind == "llava" else (480, 640)
    return sizes if draw.random() < 0.5 else (sizes[1], sizes[0])


def photograph(size: Size, draw: np.random.Generator) -> Pictures.Image:
    """Amplitudes fall with 1 / frequency, as they do in photographs (Field 1987); colours follow brightness."""
    width, height = size
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    white = draw.standard_normal((3, height, width))
    grey, *others = np.fft.irfft2(np.fft.rfft2(white) / frequency, (height, width))
    channels = [
        channel / channel.std() for channel in (grey, 0.9 * grey + 0.3 * others[0], 0.9 * grey + 0.3 * others[1])
    ]
    return Pictures.fromarray((np.stack(channels, -1) * 55 + 120).clip(0, 255).astype(np.uint8))


def padded_share(lengths: np.ndarray, batch: int, seed: int = 0) -> float:
    """Share (0 to 1) of the positions that are padding when batches are drawn at random."""
    order = np.random.default_rng(seed).permutation(lengths)[: len(lengths) // batch * batch].reshape(-1, batch)
    return 1 - order.sum() / (order.max(1) * batch).sum()


def lengths(tokens: Path) -> np.ndarray:
    """(records,) tokens of every counted record, pictures included."""
    counted: np.ndarray = np.load(tokens.parent / "0.npy")["tokens"]
    return counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=DATA, required=True)
    parser.add_argument("--model", type=Path, required=True, help="manifest of a model directory")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--records", type=int, default=1024)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    tokens = make_data(options.data, options.model, options.output, options.records, options.pictures, options.tiny)
    rows = np.load(tokens.parent / "0.npy")
    for name in ("tokens", "supervised", "tiles"):
        print(f"{name:10} mean {rows[name].mean():7.1f}  min {rows[name].min()}  max {rows[name].max()}")
    for batch in (4, 8, 16):
        print(f"batches of {batch}: {padded_share(rows['tokens'], batch):.1%} padding")


if __name__ == "__main__":
    main()
