"""The report page in a headless Chromium."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from browser.chromium import watch
from browser.made import SIZE, line, make_page, make_picture, write_runs

pytestmark = pytest.mark.browser


def opened(page: Page, report: Path, hash_: str = "") -> Page:
    page.goto(report.as_uri() + hash_)
    return page


def samples_of(page: Page) -> list[dict[str, Any]]:
    return json.loads(page.locator("#samples").text_content() or "")


def cards(page: Page) -> list[str]:
    """Ids of the cards that are there."""
    return page.locator("#cards .id").all_text_contents()


def status(page: Page) -> str:
    return page.locator("#status").inner_text()


def test_it_opens_without_trouble_and_without_a_network(page: Page, report: Path) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url.split(":")[0]))
    opened(page, report)
    page.evaluate("Promise.all([...document.images].map((image) => image.decode()))")
    assert set(asked) <= {"file", "data"}
    assert asked.count("file") == 1
    assert "Base model" in page.locator(".headline").inner_text()


def test_what_others_wrote_stays_text(page: Page, report: Path) -> None:
    opened(page, report)
    assert page.title().startswith("Rectangles </script><script>")
    page.fill("#query", "onerror")
    assert cards(page) == ["evil"]
    page.locator("#cards button").click()
    page.keyboard.press("Escape")
    for details in page.locator("details").all():
        details.evaluate("element => { element.open = true; }")
    assert page.evaluate("window.hacked") is None
    assert page.locator("article img:not([src^='data:image/'])").count() == 0
    assert page.locator("article script, h1 script, td script, td img").count() == 0


def test_filters_show_what_they_count(page: Page, report: Path) -> None:
    samples = samples_of(opened(page, report))
    for button in page.locator("[data-show]").all():
        show = button.get_attribute("data-show")
        wanted = [sample["id"] for sample in samples if show in ("", sample["outcome"])]
        button.click()
        while page.locator("#more").is_visible():
            page.locator("#more").click()
        assert cards(page) == wanted
        assert button.locator("b").inner_text() == str(len(wanted))
        assert button.get_attribute("aria-pressed") == "true"
    page.locator("[data-show='']").click()
    page.select_option("#group", "held-out: where")
    assert cards(page) == ["box-1", "box-2", "box-3"]
    assert page.locator("[data-show=improved] b").inner_text() == "3"
    assert page.locator("[data-show=worse] b").inner_text() == "0"
    page.locator("#clear").click()
    assert status(page) == f"24 of {len(samples)} records"
    page.check("#cut")
    assert sorted(cards(page)) == ["long", "long-chinese"]
    assert page.locator(".cut").first.is_visible()


def test_search_goes_through_ids_and_all_texts(page: Page, report: Path) -> None:
    opened(page, report)
    for query, wanted in (("HILL", ["words"]), ("box-2", ["box-2"]), ("小狗", ["chinese"]), ("كبير", ["arabic"])):
        page.fill("#query", query)
        assert cards(page) == wanted
        assert status(page) == "1 record"
    page.fill("#query", "nowhere to be found")
    assert status(page) == "No record matches."


def test_the_keyboard_is_enough(page: Page, report: Path) -> None:
    opened(page, report)
    page.keyboard.press("/")
    page.keyboard.type("box")
    assert len(cards(page)) == 3
    page.keyboard.press("Tab")
    page.locator("#cards button").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("#viewer").is_visible()
    assert page.locator("#place").inner_text() == "1 of 3"
    page.keyboard.press("ArrowRight")
    assert page.locator("#viewed .id").inner_text() == "box-2"
    page.keyboard.press("Escape")
    assert not page.locator("#viewer").is_visible()
    assert page.evaluate("document.activeElement.parentElement.querySelector('.id').textContent") == "box-2"


def test_filters_and_samples_are_links(page: Page, report: Path) -> None:
    opened(page, report, "#show=improved&q=box")
    assert len(cards(page)) == 3
    assert page.locator("[data-show=improved]").get_attribute("aria-pressed") == "true"
    page.locator("#cards .id").nth(1).click()
    expect(page.locator("#cards .id")).to_have_text(["box-2"])
    page.go_back()
    expect(page.locator("#cards article")).to_have_count(3)
    page.go_forward()
    expect(page.locator("#cards .id")).to_have_text(["box-2"])
    address = page.url
    page.locator("#clear").click()
    assert "sample" not in page.url
    page.goto("about:blank")
    page.goto(address)
    assert cards(page) == ["box-2"]
    page.goto(f"{report.as_uri()}#show=nonsense&group=nothing")
    page.reload()
    assert status(page).startswith("24 of")


def test_the_numbers_above_lead_to_their_records(page: Page, report: Path) -> None:
    opened(page, report)
    link = page.locator(".tally a").first
    losses = link.locator("b").inner_text()
    link.click()
    expect(page.locator("#status")).to_have_text(f"{losses} records")


def test_boxes_lie_where_they_should(page: Page, report: Path) -> None:
    opened(page, report, "#q=box-3")
    place = "element => { const box = element.getBoundingClientRect(); return [box.x, box.y, box.width, box.height]; }"
    left, top, width, height = page.locator("#cards img").evaluate(place)
    assert width / height == pytest.approx(SIZE[0] / SIZE[1], rel=0.02)
    for kind in ("reference", "after"):  # thousandths, and the same in pixels
        box = page.locator(f"#cards rect.{kind}").evaluate(place)
        assert box == pytest.approx([left + width / 4, top + height / 4, width / 4, height / 2], abs=2)
    assert page.locator("#cards rect.before").count() == 0  # upside down
    page.fill("#query", "box-1")
    assert page.locator("#cards rect").count() == 3
    strokes = page.locator("#cards rect").evaluate_all("all => all.map((box) => getComputedStyle(box).stroke)")
    assert len(set(strokes)) == 3
    assert page.locator("#cards dt .line").count() == 3


def marked(page: Page, kind: str) -> list[str]:
    return page.locator(f"#cards mark.{kind}").all_text_contents()


def test_differences_are_marked_by_word_or_by_character(page: Page, report: Path) -> None:
    opened(page, report, "#q=words")
    assert (marked(page, "before"), marked(page, "after")) == (["small"], ["large", "green"])
    page.select_option("#marking", "reference")
    assert (marked(page, "before"), marked(page, "after")) == (["small", "a"], ["a green"])
    page.select_option("#marking", "")
    assert page.locator("#cards mark").count() == 0
    page.select_option("#marking", "answers")
    page.fill("#query", "chinese")
    first = page.locator("#cards article", has=page.locator("a:text-is('chinese')"))
    assert first.locator("mark").all_text_contents() == ["猫", "小狗"]
    assert first.locator("dt:text-is('Also right') + dd").inner_text() == "小狗"
    page.fill("#query", "arabic")
    assert page.locator("#cards .text").first.evaluate("element => getComputedStyle(element).direction") == "rtl"


def test_differences_of_long_answers_take_no_time(page: Page, report: Path) -> None:
    opened(page, report)
    texts = [" ".join(str(number * step % 7919) for number in range(4_000)) for step in (3, 5)]
    start = time.perf_counter()
    parts = page.evaluate("([a, b]) => differences(a, b)", texts)
    assert time.perf_counter() - start < 2
    assert "".join(part for part, _ in parts) == texts[0]
    same = page.evaluate("([a, b]) => differences(a, b)", [texts[0], texts[0] + " more"])
    assert same == [[texts[0], False]]


def test_regressions_general_ability_and_the_other_engine(page: Page, report: Path) -> None:
    opened(page, report)
    worse = page.locator(".regressions").inner_text()
    assert "Word error rate in general" in worse
    assert "forgotten" in worse
    assert "lower is better" in page.locator("#general").inner_text()
    results = page.locator("#results").inner_text()
    assert "7 of 8 answers (87.5%) are equal" in results
    assert "lmdeploy 1.2.3, bfloat16 on cuda" in results
    links = page.locator("#reproduce a").evaluate_all("all => all.map((one) => one.getAttribute('href'))")
    assert "comparison.csv" in links
    assert all((report.parent / link).is_file() for link in links if "%" not in link)
    assert "../held-out/converted-tuned/predictions.jsonl" in links


@pytest.mark.parametrize("embedded", [False, True], ids=["file", "data URI"])
def test_inside_another_page(browser: Browser, report: Path, tmp_path: Path, embedded: bool) -> None:
    """``snakemake --report`` shows the page in a frame, from a file (zip) or a data URI (html)."""
    data = base64.b64encode(report.read_bytes()).decode("ascii")
    source = f"data:text/html;base64,{data}" if embedded else report.as_uri()
    outer = tmp_path / "outer.html"
    outer.write_text(f'<iframe sandbox="allow-scripts" width="900" height="900" src="{source}"></iframe>')
    trouble: list[str] = []
    opened = browser.new_page()
    watch(opened, trouble)
    opened.goto(outer.as_uri())
    frame = opened.frame_locator("iframe")
    frame.locator("#query").fill("box")
    expect(frame.locator("#cards article")).to_have_count(3)
    frame.locator("[data-show=worse]").click()
    expect(frame.locator("#status")).to_have_text("No record matches.")
    frame.locator(".tally a").first.click()
    expect(frame.locator("#cards article")).to_have_count(3)
    opened.close()
    assert trouble == []


def test_5000_samples_are_there_at_once(browser: Browser, tmp_path: Path) -> None:
    pictures = [make_picture(tmp_path / "pictures" / f"{number}.jpg", number) for number in range(100)]
    found = [
        line(f"r{number}", pictures[number % 100], "red", "blue" if number % 3 else "red", "blue")
        for number in range(5_000)
    ]
    report = make_page(tmp_path, [write_runs(tmp_path, "held-out", found)])
    page = browser.new_page()
    start = time.perf_counter()
    page.goto(report.as_uri(), wait_until="commit")
    expect(page.locator("#cards img")).to_have_count(24, timeout=10_000)
    assert time.perf_counter() - start < 10
    start = time.perf_counter()
    page.fill("#query", "r4999")
    assert status(page) == "1 record"
    assert time.perf_counter() - start < 3
    page.close()
