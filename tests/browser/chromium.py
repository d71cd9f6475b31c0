"""Chromium for the tests, and what goes wrong in its pages."""

from __future__ import annotations

import shutil

from playwright.sync_api import Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find_chromium() -> str | None:
    """Chromium or Chrome of this machine."""
    return next((found for found in map(shutil.which, NAMES) if found), None)


def watch(page: Page, trouble: list[str]) -> None:
    """Note in ``trouble`` what goes wrong in a page: messages, errors, failed requests, dialogs."""
    page.on("console", lambda message: message.type in ("error", "warning") and trouble.append(message.text))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("requestfailed", lambda request: trouble.append(f"failed: {request.url[:200]}"))
    page.on("dialog", lambda dialog: (trouble.append(f"dialog: {dialog.message}"), dialog.dismiss()))
