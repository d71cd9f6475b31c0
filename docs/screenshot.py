#!/usr/bin/env python3
"""The picture of a report in the README: the top of the page in Chromium.

    docs/screenshot.py results/report/digits/index.html [--output docs/report.png] [--dark] [--phone] [--full]

Needs Chromium or Chrome, and the packages of the development environment (`make .venv`).
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
WIDE, PHONE = {"width": 1100, "height": 1000}, {"width": 390, "height": 844}


def take(page: str, output: Path, dark: bool = False, phone: bool = False, full: bool = False) -> None:
    """Write the picture of a page (a file, perhaps with ``#filter``)."""
    file, _, filters = page.partition("#")
    if not Path(file).is_file():
        sys.exit(f"error: {file}: no such file\n    -> snakemake makes it")
    program = next((found for found in map(shutil.which, NAMES) if found), None)
    if program is None:
        sys.exit("error: no Chromium or Chrome\n    -> install one (Debian: apt install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--hide-scrollbars"])
        opened = browser.new_page(
            viewport=PHONE if phone else WIDE,
            color_scheme="dark" if dark else "light",
            device_scale_factor=2 if phone else 1,
        )
        opened.goto(Path(file).resolve().as_uri() + (f"#{filters}" if filters else ""))
        opened.evaluate("Promise.all([...document.images].map((image) => image.decode()))")
        opened.screenshot(path=output, full_page=full)
        browser.close()
    print(output)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", help="index.html, perhaps with a filter: index.html#show=worse")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("report.png"))
    parser.add_argument("--dark", action="store_true", help="in dark colours")
    parser.add_argument("--phone", action="store_true", help="390 pixels wide")
    parser.add_argument("--full", action="store_true", help="the whole page, not only its top")
    take(**vars(parser.parse_args()))
