"""A headless Chromium, and pages that remember what went wrong in them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from browser.chromium import NAMES, find_chromium, watch
from browser.made import EVIL, lines, make_page, write_runs


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium or Chrome of this machine; a failure says what to install."""
    program = find_chromium()
    if program is None:
        pytest.fail(f"no browser: none of {', '.join(NAMES)} is there; install one (Debian: apt install chromium)")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def trouble() -> list[str]:
    """Console messages, errors, failed requests and dialogs of the test's page, as they come."""
    return []


@pytest.fixture
def page(browser: Browser, trouble: list[str]) -> Iterator[Page]:
    """A page of 1100 x 900; a test in which it has trouble fails."""
    opened = browser.new_page(viewport={"width": 1100, "height": 900})
    watch(opened, trouble)
    yield opened
    opened.close()
    assert trouble == []


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of an evaluation with one of each thing that a page may meet, and of one about general ability."""
    folder = tmp_path_factory.mktemp("a report")
    found = lines(folder)
    held_out = write_runs(folder, "held-out", found, ("exact_match", "anls"))
    held_out.parity = folder / "parity.json"
    different = [{"id": "worse-1", "transformers": EVIL, "other": "red"}]
    engines = [
        {"backend": name, "dtype": "bfloat16", "device": "cuda", "versions": {name: "1.2.3"}}
        for name in ("transformers", "lmdeploy")
    ]
    held_out.parity.write_text(json.dumps({"n": 8, "equal": 7, "engines": engines, "differences": different}))
    general = write_runs(folder, "general", [one for one in found if one["id"].startswith("plain")], ("wer",))
    general.general = True
    return make_page(folder, [held_out, general], f"Rectangles {EVIL}")
