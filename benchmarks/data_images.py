"""How fast pictures are checked, against bare decoding with Pillow on the same threads, and what the cache saves.

    python benchmarks/data_images.py [--pictures 600] [--added 100] [--rounds 3] [--quality 85]

Makes photo-like JPEGs (640 x 480; 160 kB at quality 85, the average of COCO's photographs) in a temporary folder.
Figures are the median of rounds that alternate between the two.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image as Pictures

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow"))
from vlmflow.data import images

SIZE = (640, 480)


def make_pictures(folder: Path, numbers: range, quality: int) -> list[str]:
    """Write a JPEG for each number; returns the names."""
    for number in numbers:
        noise(number).save(folder / f"{number}.jpg", quality=quality)
    return [f"{number}.jpg" for number in numbers]


def noise(seed: int) -> Pictures.Image:
    """Amplitudes fall with 1 / frequency, as they do in photographs (Field 1987); colours follow brightness."""
    width, height = SIZE
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    white = np.random.default_rng(seed).standard_normal((3, height, width))
    grey, *others = np.fft.irfft2(np.fft.rfft2(white) / frequency, (height, width))
    channels = [
        channel / channel.std() for channel in (grey, 0.9 * grey + 0.3 * others[0], 0.9 * grey + 0.3 * others[1])
    ]
    return Pictures.fromarray((np.stack(channels, -1) * 55 + 120).clip(0, 255).astype(np.uint8))


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def decode(path: Path) -> None:
    """The least that training does with a picture."""
    with Pictures.open(path) as picture:
        picture.load()
        picture.convert("RGB")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, number in (("pictures", 600), ("added", 100), ("rounds", 3), ("quality", 85)):
        parser.add_argument(f"--{name}", type=int, default=number)
    options = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    os.environ["OMP_NUM_THREADS"] = str(threads)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        names = make_pictures(folder, range(options.pictures), options.quality)
        size = statistics.mean((folder / name).stat().st_size for name in names)
        print(f"{len(names)} JPEGs of {SIZE[0]} x {SIZE[1]}, {size / 1000:.0f} kB each, {threads} threads")
        compare(folder, names, threads, options.rounds)
        show_cache(folder, names, options)


def compare(folder: Path, names: list[str], threads: int, rounds: int) -> None:
    """Bare decoding against the check without a cache."""

    def bare() -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(decode, [folder / name for name in names]))

    def check() -> None:
        images.check_images(folder, names, images.MAX_PIXELS, None)

    times: dict[str, list[float]] = {"bare Pillow": [], "check_images": []}
    for work in (bare, check):
        work()  # files into memory, plugins loaded
    for _ in range(rounds):
        times["bare Pillow"].append(seconds(bare))
        times["check_images"].append(seconds(check))
    rates = {name: len(names) / statistics.median(taken) for name, taken in times.items()}
    for name, rate in rates.items():
        print(f"{name:13} {rate:7.0f} pictures/s")
    print(f"{'ratio':13} {rates['check_images'] / rates['bare Pillow']:7.1%}")


def show_cache(folder: Path, names: list[str], options: argparse.Namespace) -> None:
    """A run that fills the cache, then one with further pictures."""
    decoded: list[str] = []
    original = images._decode

    def counted(content: bytes, name: str, *rest: object) -> images.Check:
        decoded.append(name)
        return original(content, name, *rest)  # type: ignore[arg-type]

    images._decode = counted  # type: ignore[assignment]
    cache = folder / "cache" / "pictures.sqlite"
    more = make_pictures(folder, range(len(names), len(names) + options.added), options.quality)
    for asked in (names, names + more):
        decoded.clear()
        start = time.perf_counter()
        images.check_images(folder, asked, images.MAX_PIXELS, cache)
        taken = time.perf_counter() - start
        print(f"with a cache: {len(asked)} pictures, {len(decoded)} decoded, {taken:.2f} s")


if __name__ == "__main__":
    main()
