"""The page of `vlmflow app`, started as users start it, in a real browser."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image as Pictures
from playwright.sync_api import Browser, Page, expect

from llava_parts import build
from vlmflow.chat.answerer import open_model
from vlmflow.chat.conversation import Settings, question
from vlmflow.chat.media import open_picture
from vlmflow.data.records import Record, Turn, read_records, write_records
from vlmflow.files import write_manifest

pytestmark = pytest.mark.browser
WORKFLOW = Path(__file__).parents[2] / "workflow"
HOSTILE = "<img src=x onerror=alert(1)><b>bold</b> & 'quotes'?"
TOKENS = 24


class Running(NamedTuple):
    """A running page: where it is, the two models, the examples, and what it printed so far."""

    address: str
    models: tuple[Path, Path]
    records: list[Record]
    printed: str


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, vicuna: Path, clip: Path) -> Iterator[Running]:
    """The page for two tiny models, with a hostile question among the examples."""
    folder = tmp_path_factory.mktemp("app")
    one, two = (
        build(folder / name, language=vicuna, vision=clip, template="vicuna", seed=seed)
        for seed, name in enumerate(("one", "two"))
    )
    records = read_records(tiny_data.parent / "test.jsonl")
    hostile = Record("hostile", records[1].images, (Turn("user", f"<image>\n{HOSTILE}"), Turn("assistant", HOSTILE)))
    records[1] = hostile
    data = folder / "data"
    write_records(data / "test.jsonl", records)
    write_manifest(data)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vlmflow", "app", "--before", str(one), "--after", str(two / "manifest.json"),
               "--data", str(data / "manifest.json"), "--port", str(port), "--max-new-tokens", str(TOKENS),
               "--title", "<i>Tiny</i> models"]  # fmt: skip
    environment = {**os.environ, "TMPDIR": str(folder)}
    process = subprocess.Popen(command, cwd=WORKFLOW, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    printed = "".join(iter_until(process.stderr, "open http"))
    yield Running(f"http://127.0.0.1:{port}/", (one, two), records, printed)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert not list(folder.glob("vlmflow-app-*")), "uploads are gone"


def iter_until(lines: Iterator[str], beginning: str) -> Iterator[str]:
    """Lines up to the one that begins so."""
    for line in lines:
        yield line
        if line.startswith(beginning):
            return


def answers(running: Running, record: Record, text: str) -> list[str]:
    """What the models say by themselves."""
    shown = [open_picture(Path(image.path)) for image in record.images]
    said = []
    for model in running.models:
        *_, reply = open_model(str(model)).stream([question(text, shown)], Settings(TOKENS))
        said.append(reply.text)
    return said


@pytest.fixture
def page(page: Page, trouble: list[str]) -> Iterator[Page]:
    """A page of Gradio, which closes its stream of answers when none are to come, and warns of every upload."""
    yield page
    page.close()
    usual = ("/gradio_api/queue/data?", "Method not implemented.")
    trouble[:] = [each for each in trouble if not any(one in each for one in usual)]


def visit(page: Page, running: Running) -> list[str]:
    """Open the page; returns the list in which the hosts of its requests are collected."""
    hosts: list[str] = []
    page.on("request", lambda request: hosts.append(urllib.parse.urlsplit(request.url).netloc))
    page.goto(running.address)
    page.locator("#examples img").first.wait_for()
    return hosts


def ask(page: Page) -> None:
    """Press the button and wait until both have answered."""
    page.click("#ask")
    for box in ("#before", "#after"):
        expect(page.locator(box)).to_contain_text(re.compile(r"\d s|cut at"), timeout=60_000)


def expect_no_answers(page: Page) -> None:
    """Both boxes are empty, and their labels tell of no answer."""
    for box, name in (("#before", "one"), ("#after", "two")):
        expect(page.locator(f"{box} textarea")).to_have_value("")
        expect(page.locator(f"{box} [data-testid=block-info]")).to_have_text(re.compile(rf" · {name}\s*$"))


@pytest.mark.parametrize("place", [0, 1])
def test_both_answer_an_example(page: Page, running: Running, place: int) -> None:
    hosts = visit(page, running)
    record = running.records[place]
    text = record.turns[0].text.removeprefix("<image>\n")
    page.locator("#examples button").nth(place).click()
    expect(page.locator("#question textarea")).to_have_value(text)
    expect(page.locator("#reference textarea")).to_have_value(record.turns[1].text)
    page.locator("#pictures img").wait_for()
    ask(page)
    said = [page.input_value(f"{box} textarea") for box in ("#before", "#after")]
    assert said == [value.replace("\r", "\n") for value in answers(running, record, text)] and said[0] != said[1]
    assert set(hosts) == {urllib.parse.urlsplit(running.address).netloc}
    expect(page.locator("h1")).to_have_text("<i>Tiny</i> models")
    assert page.locator("img[src=x]").count() == 0 and page.locator("#examples b").count() == 0


def test_another_question_has_no_reference(page: Page, running: Running) -> None:
    visit(page, running)
    page.locator("#examples button").first.click()
    expect(page.locator("#reference textarea")).to_be_visible()
    ask(page)
    page.locator("#question textarea").press_sequentially(" Really?")
    expect(page.locator("#reference")).to_be_hidden()
    expect_no_answers(page)
    ask(page)
    page.locator("#examples button").nth(2).click()
    expect(page.locator("#reference textarea")).to_be_visible()
    expect_no_answers(page)


def test_pictures_of_ones_own(page: Page, running: Running, tmp_path: Path) -> None:
    visit(page, running)
    for name, colour in (("a.png", "red"), ("b.jpg", "blue")):
        Pictures.new("RGB", (40, 30), colour).save(tmp_path / name)
    page.set_input_files("#pictures input[type=file]", [tmp_path / "a.png", tmp_path / "b.jpg"])
    expect(page.locator("#pictures .gallery-item")).to_have_count(2)
    page.fill("#question textarea", "Which colours?")
    ask(page)
    shown = [open_picture(tmp_path / name) for name in ("a.png", "b.jpg")]
    *_, reply = open_model(str(running.models[0])).stream([question("Which colours?", shown)], Settings(TOKENS))
    expect(page.locator("#before textarea")).to_have_value(reply.text)


def test_what_is_no_picture_is_told(page: Page, running: Running, tmp_path: Path) -> None:
    visit(page, running)
    Pictures.effect_noise((64, 64), 50).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:300])
    page.set_input_files("#pictures input[type=file]", tmp_path / "cut.png")
    page.locator("#pictures .gallery-item").wait_for()
    page.fill("#question textarea", "What?")
    page.click("#ask")
    told = page.get_by_text("cut.png: not a picture that can be decoded")
    expect(told).to_be_visible()
    assert str(running.models[0].parent) not in told.inner_text()


def test_a_wrong_question_is_told(page: Page, running: Running) -> None:
    visit(page, running)
    page.fill("#question textarea", "What?")
    ask(page)
    page.fill("#question textarea", "<image> what?")
    page.click("#ask")
    expect(page.get_by_text("1 <image> in the text for 0 picture(s)")).to_be_visible()
    expect_no_answers(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(browser: Browser, running: Running, scheme: str, trouble: list[str]) -> None:
    page = browser.new_page(viewport={"width": 360, "height": 740}, color_scheme=scheme)  # type: ignore[arg-type]
    page.on("pageerror", lambda error: trouble.append(str(error)))
    visit(page, running)
    page.locator("#examples button").first.click()
    ask(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    colours = page.evaluate("getComputedStyle(document.body).backgroundColor").strip("rgba()").split(",")[:3]
    assert all(int(colour) < 60 for colour in colours) == (scheme == "dark")
    before, after = page.locator("#before").bounding_box(), page.locator("#after").bounding_box()
    assert before and after and after["y"] > before["y"] and after["width"] > 280
    page.close()
    assert trouble == []


def test_no_file_of_the_machine_is_served(running: Running, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    for path in (secret, running.models[0], Path(running.records[0].images[0].path), Path("/etc/passwd"), "README.md"):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"{running.address}gradio_api/file={path}")
    told = json.loads(urllib.request.urlopen(f"{running.address}config").read())
    assert not told["analytics_enabled"] and "secret" not in json.dumps(told)


def test_the_command_and_the_address_are_printed(running: Running) -> None:
    first, second = running.printed.splitlines()
    assert first.startswith("vlmflow app --before ") and f"open {running.address} in a browser" in second
