"""The data stage on a file shaped like LLaVA's mix of 665,298 records: records a second and peak memory.

Pictures are not decoded here (benchmarks/data_images.py does that): what is known of each comes from its name. The
baseline, in the same run, is what a plain loader does: ``json.load`` of the whole file and one look at every turn.

    python benchmarks/data_records.py [RECORDS]
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from string import ascii_lowercase

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow"))
from vlmflow.data.images import ImageFacts
from vlmflow.data.validate import write_dataset

RECORDS = 665_298
# Sources and sizes of the LLaVA-1.5 paper, table 7; question and answer pairs, and words of each question and answer,
# chosen so that the file has the size of the published one (1.03 GB).
SOURCES = (
    # thousands, pictures, pairs, words of a question, words of an answer
    (158, True, (1, 4), 10, 85),
    (40, False, (1, 8), 45, 190),
    (83, True, (1, 11), 6, 2),
    (72, True, (6, 18), 9, 1),
    (9, True, (1, 2), 8, 2),
    (80, True, (5, 5), 6, 4),
    (66, True, (1, 1), 30, 1),
    (22, True, (1, 1), 12, 12),
    (48, True, (1, 10), 14, 14),
    (86, True, (4, 12), 10, 12),
)
CONFIG = {
    "format": "auto", "placeholder": "first", "box_scale": "round-1000", "duplicate_ids": "suffix",
    "split": {"validation": 0.001, "test": 0.001, "seed": 0}, "on_error": "error", "max_dropped": 0, "limit": None,
}  # fmt: skip


def make_file(path: Path, records: int) -> None:
    """A JSON array in one line, as the published file is."""
    source = random.Random(0)
    words = ["".join(source.choices(ascii_lowercase, k=source.randint(2, 9))) for _ in range(5_000)]
    kinds = source.choices(SOURCES, [kind[0] for kind in SOURCES], k=records)

    def said(mean: int) -> str:
        return " ".join(source.choices(words, k=max(1, int(source.expovariate(1 / mean)))))

    with path.open("w", encoding="utf-8") as stream:
        for index, (_, pictured, (fewest, most), asked, answered) in enumerate(kinds):
            turns = []
            for pair in range(source.randint(fewest, most)):
                tag = "<image>\n" if pictured and not pair else ""
                turns.append({"from": "human", "value": f"{tag}{said(asked).capitalize()}?"})
                turns.append({"from": "gpt", "value": f"{said(answered).capitalize()}."})
            record = {"id": f"{index:012}", "conversations": turns}
            if pictured:
                record["image"] = f"coco/train2017/{index:012}.jpg"
            stream.write(("[" if not index else ", ") + json.dumps(record, ensure_ascii=False))
        stream.write("]")


def validate(path: Path, folder: Path) -> int:
    """The data stage from the file to its splits."""

    def pictures(names: list[str]) -> dict[str, ImageFacts]:
        found = {}
        for name in names:
            digest = hashlib.sha256(name.encode()).digest()
            found[name] = ImageFacts(640, 480, digest, digest, int.from_bytes(digest[:8], "big"))
        return found

    write_dataset(CONFIG, [path], folder, pictures, folder / "out" / "manifest.json")
    counts: dict[str, int] = json.loads((folder / "out" / "manifest.json").read_text())["records"]
    return sum(counts.values())


def load(path: Path, folder: Path) -> int:
    """The baseline: the whole file in memory, every turn looked at once."""
    del folder
    records = json.loads(path.read_text(encoding="utf-8"))
    return sum(1 for record in records if all(turn["value"].strip() for turn in record["conversations"]))


def measured(work: Callable[[Path, Path], int], path: Path, folder: Path) -> tuple[float, float, int]:
    """(seconds, peak memory in MB, records) of ``work`` in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure, work, path, folder).result()


def _measure(work: Callable[[Path, Path], int], path: Path, folder: Path) -> tuple[float, float, int]:
    start = time.perf_counter()
    count = work(path, folder)
    seconds = time.perf_counter() - start
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return seconds, sum(peaks) / 1024, count


def main() -> None:
    """Print both and their ratio."""
    records = int(sys.argv[1]) if len(sys.argv) > 1 else RECORDS
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "mix.json")
        make_file(path, records)
        print(f"{records:,} records, {path.stat().st_size / 1e9:.2f} GB")
        results = {}
        for name, work in (("json.load, a look at every turn", load), ("data stage, pictures not decoded", validate)):
            seconds, memory, count = results[name] = measured(work, path, Path(scratch))
            assert count == records, f"{name}: {count} of {records} records"
            print(f"{name:36} {seconds:6.1f} s  {count / seconds:8,.0f} records/s  {memory:6,.0f} MB at its peak")
        (plain, plain_memory, _), (ours, our_memory, _) = results.values()
        print(f"ratio: {ours / plain:.2f} times the time, {our_memory / plain_memory:.2f} times the memory")


if __name__ == "__main__":
    main()
