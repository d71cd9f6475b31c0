"""The page of `vlmflow app` with models that answer when the test lets them: several users, and what Stop does."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator, Sequence

import pytest
from playwright.sync_api import Browser, Page, expect

from vlmflow.chat.app import App
from vlmflow.chat.conversation import Message, Reply, Settings

pytestmark = pytest.mark.browser


class Slow:
    """A model that says one word, and the rest when it may."""

    def __init__(self, name: str) -> None:
        self.name, self.may = name, threading.Event()

    def stream(self, messages: Sequence[Message], settings: Settings) -> Iterator[Reply]:
        """The question again and again, then its end."""
        del settings
        asked = messages[-1].text
        while not self.may.wait(0.05):
            yield Reply(f"{asked} …")
        yield Reply(f"{asked} done")


class Running:
    """A page, its address and its models."""

    def __init__(self, users: int) -> None:
        self.models = [Slow("one"), Slow("two")]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.app = App(self.models, [], Settings(), True, users, "Slow models")
        self.app.launch("127.0.0.1", port)
        self.address = f"http://127.0.0.1:{port}/"

    def finish(self) -> None:
        """Let both models end their answers."""
        for model in self.models:
            model.may.set()


@pytest.fixture(params=[1])
def running(request: pytest.FixtureRequest) -> Iterator[Running]:
    """A page on which so many users are answered at the same time."""
    made = Running(request.param)
    yield made
    made.finish()
    made.app.blocks.close(verbose=False)


@pytest.fixture
def users(browser: Browser, running: Running) -> Iterator[list[Page]]:
    """Two tabs."""
    contexts = [browser.new_context() for _ in range(2)]
    pages = [context.new_page() for context in contexts]
    for page in pages:
        page.goto(running.address)
    yield pages
    for context in contexts:
        context.close()


def ask(page: Page, text: str) -> None:
    page.fill("#question textarea", text)
    page.click("#ask")


def expect_state(page: Page, state: str, answer: str | None = None) -> None:
    for box in ("#before", "#after"):
        expect(page.locator(f"{box} [data-testid=block-info]")).to_have_text(re.compile(rf"{state}\s*$"))
        if answer is not None:
            expect(page.locator(f"{box} textarea")).to_have_value(answer)


def test_a_user_waits_for_another_and_may_give_up(running: Running, users: list[Page]) -> None:
    first, second = users
    ask(first, "A")
    expect_state(first, "answers …", "A …")
    ask(second, "B")
    expect_state(second, "waits for another user", "")
    second.click("#stop")
    expect_state(second, "stopped", "")
    expect_state(first, "answers …", "A …")
    ask(second, "C")
    expect_state(second, "waits for another user", "")
    running.finish()
    expect_state(first, r"\d s", "A done")
    expect_state(second, r"\d s", "C done")


def test_a_closed_tab_lets_the_next_user_in(users: list[Page]) -> None:
    first, second = users
    ask(first, "A")
    expect_state(first, "answers …", "A …")
    ask(second, "B")
    expect_state(second, "waits for another user")
    first.close()
    expect_state(second, "answers …", "B …")


@pytest.mark.parametrize("running", [2], indirect=True)
def test_servers_answer_several_users(users: list[Page]) -> None:
    for page, text in zip(users, "AB", strict=True):
        ask(page, text)
        expect_state(page, "answers …", f"{text} …")


def test_a_stopped_answer_is_told_and_a_changed_question_has_none(running: Running, users: list[Page]) -> None:
    page, _ = users
    ask(page, "A")
    expect_state(page, "answers …", "A …")
    page.click("#stop")
    expect_state(page, "stopped", "A …")
    ask(page, "B")
    expect_state(page, "answers …", "B …")
    page.locator("#question textarea").press_sequentially("?")
    expect_state(page, "one|two", "")
    running.finish()
    ask(page, "C")
    expect_state(page, r"\d s", "C done")
