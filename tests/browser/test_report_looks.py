"""How the report page looks: in dark, on a phone, on paper, without a mouse; and its picture."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page

from browser.made import line, make_page, write_runs

pytestmark = pytest.mark.browser
SCREENSHOT = Path(__file__).parents[2] / "docs" / "screenshot.py"


def test_dark_and_light_differ_and_can_be_read(page: Page, report: Path) -> None:
    page.goto(report.as_uri())
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        colours = "name => getComputedStyle(document.documentElement).getPropertyValue(name).trim()"
        page_, panel, ink, soft, bad, good = (
            page.evaluate(colours, f"--{name}") for name in ("page", "panel", "ink", "soft", "bad", "good")
        )
        assert all(contrast(page_, colour) >= 4.5 for colour in (ink, soft, bad, good))  # WCAG 2, AA
        assert contrast(panel, ink) >= 4.5
        assert (luminance(page_) < 0.1) == (scheme == "dark")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(color_scheme="light")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != background


def luminance(colour: str) -> float:
    """Relative luminance of #rgb or #rrggbb (WCAG 2)."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    shares = [int(digits[start : start + 2], 16) / 255 for start in (0, 2, 4)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(first: str, second: str) -> float:
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("width", [320, 390, 768])
def test_nothing_is_wider_than_the_screen(page: Page, report: Path, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 844})
    page.goto(report.as_uri())
    for details in page.locator("details").all():
        details.evaluate("element => { element.open = true; }")
    page.locator("#more").click()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.locator("#cards button").first.click()
    assert page.evaluate("document.querySelector('#viewer').scrollWidth") <= width
    assert page.evaluate("document.querySelector('#close').getBoundingClientRect().right") <= width


def test_print_has_the_first_samples_and_no_controls(page: Page, report: Path) -> None:
    page.goto(report.as_uri())
    page.locator("#more").click()
    document = page.pdf(format="A4")
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", document)) <= 9
    page.emulate_media(media="print")
    assert not page.locator("#filters").is_visible()
    assert page.locator("#cards article:visible").count() == 24
    assert page.locator(".change").is_visible()
    page.set_viewport_size({"width": 688, "height": 1000})  # A4 without its margins
    assert page.evaluate("document.documentElement.scrollWidth") == 688


@pytest.mark.parametrize("size", [(400, 640), (640, 400), (1200, 200), (20, 20)])
def test_printed_pictures_cover_no_text(page: Page, tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, "teal").save(tmp_path / "a.png")
    box = "<box>[[250, 250, 500, 750]]</box>"
    found = [line(f"r{number}", tmp_path / "a.png", "none", box, box, sizes=[list(size)]) for number in range(6)]
    page.goto(make_page(tmp_path, [write_runs(tmp_path, "held-out", found)]).as_uri())
    page.set_viewport_size({"width": 688, "height": 1000})  # A4 without its margins
    page.emulate_media(media="print")
    place = "(one) => { const box = one.getBoundingClientRect(); return [box.x, box.y, box.width, box.height]; }"
    frame, shot, boxes = (page.locator(f"#cards {name}").first.evaluate(place) for name in (".pictures", "img", "svg"))
    assert frame[0] <= shot[0] and frame[1] <= shot[1]
    assert frame[0] + frame[2] >= shot[0] + shot[2] and frame[1] + frame[3] >= shot[1] + shot[3]
    assert shot[2] / shot[3] == pytest.approx(size[0] / size[1], rel=0.02) and boxes == pytest.approx(shot, abs=0.1)


def test_labels_and_names(page: Page, report: Path) -> None:
    page.goto(report.as_uri())
    unnamed = """all => all.filter((one) => !(one.ariaLabel || one.textContent.trim() || one.alt || one.title
      || one.labels?.length || one.querySelector("img")?.alt)).map((one) => one.outerHTML.slice(0, 200))"""
    assert page.locator("button, input, select, a, img").evaluate_all(unnamed) == []
    ids = page.locator("[id]").evaluate_all("all => all.map((one) => one.id)")
    assert len(ids) == len(set(ids))
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.locator(".aside", has_text="wrong").count() > 0


@pytest.mark.parametrize(("options", "size"), [((), (1100, 1000)), (("--dark", "--phone"), (780, 1688))])
def test_the_picture_of_the_page(report: Path, tmp_path: Path, options: tuple[str, ...], size: tuple[int, int]) -> None:
    output = tmp_path / "report.png"
    subprocess.run([sys.executable, SCREENSHOT, report, "--output", output, *options], check=True)
    picture = Image.open(output).convert("L")
    assert picture.size == size
    assert (picture.getpixel((5, 5)) < 60) == ("--dark" in options)
