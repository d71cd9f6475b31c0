"""How fast a report of 5,000 samples opens, against a page that has all its pictures in <img> elements.

    python benchmarks/report_page.py [--samples 5000] [--rounds 5]

Makes JPEG pictures of 640 x 480 from the photographs that Gradio ships (another part of them for each sample), renders
the report, and opens both pages in Chromium, by turns, each time in a new window of 1100 x 900. The other page has the
same pictures and texts, without script or style. Figures are medians; times count from the start of navigation, on the
browser's clock.
"""

from __future__ import annotations

import argparse
import html
import importlib.util
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "workflow"), str(ROOT / "tests" / "browser")]

from chromium import find_chromium  # noqa: E402
from made import Line, line, make_page, write_runs  # noqa: E402
from PIL import Image  # noqa: E402
from playwright.sync_api import Browser, sync_playwright  # noqa: E402

SIZE = (640, 480)
WORDS = ("small", "large", "red", "green", "old", "house", "tree", "woman", "dog", "street", "on", "in", "with", "two")
WATCH = """new MutationObserver((_, observer) => {
  if (!document.querySelector(%s)) return;
  window.usableAt = performance.now();
  observer.disconnect();
}).observe(document, { childList: true, subtree: true });"""
MEASURE = """() => new Promise((resolve) => requestAnimationFrame(() => setTimeout(() => resolve({
  painted: performance.getEntriesByName("first-contentful-paint")[0].startTime,
  usable: window.usableAt,
  loaded: performance.getEntriesByType("navigation")[0].domComplete,
}))))"""
SEARCH = """() => {
  const start = performance.now();
  document.querySelector("#query").value = "record-1234";
  document.querySelector("#query").dispatchEvent(new Event("input"));
  document.body.offsetHeight;
  return performance.now() - start;
}"""


def make_pictures(folder: Path, count: int) -> list[Path]:
    """JPEG pictures, each another part of a photograph, enlarged at random."""
    shipped = Path(str(importlib.util.find_spec("gradio").origin)).parent / "media_assets" / "images"
    photographs = [Image.open(path).convert("RGB") for path in sorted(shipped.glob("*.jpg"))]
    generator = random.Random(0)
    folder.mkdir()
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        width = generator.randrange(160, photograph.width)
        height = min(photograph.height, width * SIZE[1] // SIZE[0])
        left, top = (
            generator.randrange(photograph.width - width + 1),
            generator.randrange(photograph.height - height + 1),
        )
        part = photograph.crop((left, top, left + width, top + height)).resize(SIZE, Image.Resampling.BICUBIC)
        part.save(folder / f"{number}.jpg", quality=85)
    return [folder / f"{number}.jpg" for number in range(count)]


def make_lines(pictures: list[Path]) -> list[Line]:
    """Records with captions of 12 words; every seventh also has a box."""
    generator = random.Random(1)
    made = []
    for number, picture in enumerate(pictures):
        reference, before, after = (" ".join(generator.choices(WORDS, k=12)) for _ in range(3))
        after = reference if generator.random() < 0.6 else after
        box = " <box>[[100, 200, 600, 800]]</box>" if number % 7 == 0 else ""
        made.append(
            line(f"record-{number}", picture, before, after + box, reference + box, category=f"kind {number % 9}")
        )
    return made


def write_plain(report: Path, output: Path) -> None:
    """The report's samples with every picture in an <img>."""
    page = report.read_text(encoding="utf-8")

    def parts(prefix: str) -> list[str]:
        pieces = page.split(f'<script type="application/json" id="{prefix}')[1:]
        return [piece.split(">", 1)[1].split("</script>", 1)[0] for piece in pieces]

    pictures = [picture for block in parts("pictures-") for picture in json.loads(block)]
    rows = []
    for sample in json.loads(parts("samples")[0]):
        images = "".join(
            '<img src="{}" width="{}" height="{}">'.format(*pictures[number]) for number in sample["pictures"]
        )
        texts = (sample[kind] for kind in ("id", "question", "reference", "before", "after"))
        rows.append(f"<article>{images}{''.join(f'<p>{html.escape(text)}</p>' for text in texts)}</article>")
    output.write_text("<!doctype html><meta charset=utf-8>" + "\n".join(rows), encoding="utf-8")


def measured(browser: Browser, page: Path, last: str) -> dict[str, float]:
    """Milliseconds to the first paint, until the element ``last`` is there, until all is loaded, and of a search."""
    window = browser.new_page(viewport={"width": 1100, "height": 900})
    window.add_init_script(WATCH % json.dumps(last))
    window.goto(page.as_uri(), timeout=300_000)
    found: dict[str, float] = window.evaluate(MEASURE)
    if page.name == "index.html":
        found["search"] = window.evaluate(SEARCH)
    window.close()
    return found


def main() -> None:
    """Print a table of both pages, and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        runs = write_runs(folder, "held-out", make_lines(make_pictures(folder / "pictures", options.samples)))
        start = time.perf_counter()
        report, plain = make_page(folder, [runs]), folder / "plain.html"
        print(f"rendered in {time.perf_counter() - start:.1f} s, {report.stat().st_size / 1e6:.1f} MB")
        write_plain(report, plain)
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        pages = {"report": (report, "#cards article:nth-child(24)"),
                 "plain": (plain, f"article:nth-of-type({options.samples})")}  # fmt: skip
        rounds = [{name: measured(browser, *page) for name, page in pages.items()} for _ in range(options.rounds)]
    print("milliseconds   report    plain    ratio")
    for what in ("painted", "usable", "loaded"):
        ours, theirs = (statistics.median(found[name][what] for found in rounds) for name in pages)
        print(f"{what:12} {ours:8,.0f} {theirs:8,.0f} {ours / theirs:8.2f}")
    print(f"{'search':12} {statistics.median(found['report']['search'] for found in rounds):8,.0f}")


if __name__ == "__main__":
    main()
