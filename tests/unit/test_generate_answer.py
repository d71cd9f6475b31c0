"""Answers as models write them, good and hostile."""

from __future__ import annotations

import json
import time

import pytest

from vlmflow.data.generate.answer import read_pairs
from vlmflow.data.generate.prompt import prompt_text
from vlmflow.endpoint.reply import InvalidAnswerError, WrongFormError

PAIRS = [{"question": "What {is} it?", "answer": 'A "cat".'}, {"question": "q", "answer": "a"}]
JSON = json.dumps({"pairs": PAIRS})


@pytest.mark.parametrize(
    "text",
    [
        JSON,
        f"\n {JSON}\n",
        json.dumps(PAIRS),
        f"```json\n{JSON}\n```",
        f"```\r\n{JSON}\r\n```",
        f"Sure:\n```JSON\n{JSON}\n```\nIs that it?",
        f"```json {JSON}```",
        f"```json\n{json.dumps(PAIRS)}\n```",
        f"Here: {JSON} Good luck!",
        f"<think>a {{ or }} b?</think>{JSON}",
    ],
)
def test_the_json_is_found(text: str) -> None:
    assert read_pairs(text, 2) == PAIRS


def test_an_answer_may_hold_a_fence_itself() -> None:
    text = json.dumps([{"question": "q", "answer": "It shows:\n```python\n{}\n```"}])
    assert read_pairs(text, 1)[0]["answer"].endswith("{}\n```")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"pairs": PAIRS[:1]}, "1 pairs instead of 2"),
        ({"pairs": PAIRS * 2}, "4 pairs instead of 2"),
        ({"answers": PAIRS}, "wrong form"),
        ({"pairs": PAIRS, "more": 1}, "wrong form"),
        ({"pairs": ["a", "b"]}, "wrong form"),
        ({"pairs": [{"question": 1, "answer": "a"}] * 2}, "wrong form"),
        ({"pairs": [{"question": "a"}] * 2}, "wrong form"),
        ({"pairs": None}, "wrong form"),
    ],
)
def test_another_form_is_told(value: object, reason: str) -> None:
    with pytest.raises(WrongFormError, match=reason):
        read_pairs(json.dumps(value), 2)


@pytest.mark.parametrize(
    "text", ["", "A cat.", "{", "```json\n```", "[" * 100_000, '{"pairs": [', "12", "null", "9" * 10_000]
)
def test_what_is_no_json_is_told(text: str) -> None:
    with pytest.raises(WrongFormError, match="not JSON"):
        read_pairs(text, 2)


@pytest.mark.parametrize(
    "text", ["```" * 200_000, "```\n" * 200_001, "```" + "\n" * 500_000, "{" * 500_000, "```a" * 200_000]
)
def test_a_hostile_answer_costs_no_time(text: str) -> None:
    start = time.monotonic()
    with pytest.raises(InvalidAnswerError):
        read_pairs(text, 2)
    assert time.monotonic() - start < 1


@pytest.mark.parametrize(
    "text",
    ["<|im_end|>", "a<|im_start|>system", "</s>", "<s>", "<image>", "<video>", "</img>", "<IMG_CONTEXT>", "[INST]",
     "<unk>", "<start_of_turn>", "<box>", "<\uff5cUser\uff5c>", "<|begin_of_text|>"],
)  # fmt: skip
@pytest.mark.parametrize("field", ["question", "answer"])
def test_special_tokens_are_refused(text: str, field: str) -> None:
    with pytest.raises(InvalidAnswerError, match="special token"):
        read_pairs(json.dumps([{**PAIRS[1], field: f"It says {text} there."}]), 1)


@pytest.mark.parametrize("text", ["", "  \n", "\ud83d", "a\x00b", "a\x1bb"])
def test_empty_and_broken_text_is_refused(text: str) -> None:
    with pytest.raises(InvalidAnswerError, match=r"empty|broken"):
        read_pairs(json.dumps([{"question": "q", "answer": text}]), 1)


@pytest.mark.parametrize(
    "text", ["a < b > c", "<b>x</b>", "a | b", "[1]", "line\nline\ttab", "<img src=x onerror=y>", "{}", "\u732b"]
)
def test_other_text_stays_as_it_is(text: str) -> None:
    assert read_pairs(json.dumps([{"question": text, "answer": f" {text} "}]), 1) == [
        {"question": text, "answer": text}
    ]


def test_the_default_prompt_names_the_number_and_no_format() -> None:
    text = prompt_text(None, 7)
    assert "Number of questions: 7." in text and "{" not in text
    assert not any(word in text.lower() for word in ("json", "<image>", "conversation", "human", "gpt"))
