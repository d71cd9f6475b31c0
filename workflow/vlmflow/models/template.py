"""The one prompt template: rendering, token ids and label masks, for training and generation alike.

The template is a Jinja file, stored in the model directory as its chat template, so that every engine which loads the
directory renders the same text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmflow.data.records import Turn
from vlmflow.errors import UserError

IGNORED = -100
"""Label of a position that is not trained (the ignore_index of torch's cross entropy)."""
PLACEHOLDER = "<image>"


@dataclass(frozen=True)
class Encoded:
    """A conversation as token ids, picture tokens expanded; ``labels`` has the same length."""

    input_ids: list[int]
    labels: list[int]


def chat_template(name: str) -> str:
    """The Jinja source of a named template."""
    return Path(__file__).with_name(f"template.{name}.jinja").read_text(encoding="utf-8")


def render(tokenizer: Any, turns: Sequence[Turn], *, answer: bool) -> str:
    """The text of a conversation; with ``answer`` it ends where the assistant is to speak."""
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer)
    return text


def encode(tokenizer: Any, turns: Sequence[Turn], picture_tokens: Sequence[int]) -> Encoded:
    """Token ids and labels of a whole conversation.

    Trained are the assistant's words and the end-of-turn token after them; prompts, pictures and separators are not
    (labels :data:`IGNORED`). ``picture_tokens`` holds the number of tokens of each picture, in order.
    """
    text = render(tokenizer, turns, answer=False)
    spans = _answer_spans(tokenizer, turns, text)
    tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    labels = [
        token if any(start <= first and last <= end for start, end in spans) else IGNORED
        for token, (first, last) in zip(tokens["input_ids"], tokens["offset_mapping"], strict=True)
    ]
    return _expand(tokenizer, tokens["input_ids"], labels, picture_tokens)


def encode_prompt(tokenizer: Any, turns: Sequence[Turn], picture_tokens: Sequence[int]) -> list[int]:
    """Token ids of a conversation up to where the assistant is to speak."""
    ids = tokenizer(render(tokenizer, turns, answer=True), add_special_tokens=False)["input_ids"]
    return _expand(tokenizer, ids, ids, picture_tokens).input_ids


def _answer_spans(tokenizer: Any, turns: Sequence[Turn], text: str) -> list[tuple[int, int]]:
    """Character ranges of ``text`` that the assistant is to produce, end-of-turn token included."""
    spans = []
    for index, turn in enumerate(turns):
        if turn.role == "assistant":
            start = len(render(tokenizer, turns[:index], answer=True))
            until = render(tokenizer, turns[: index + 1], answer=False)
            if not text.startswith(until) or not until[start:].startswith(turn.text):
                raise UserError(
                    "the chat template renders a turn differently when more turns follow",
                    "answers cannot be told from prompts; use a template that only appends",
                )
            spans.append((start, len(until.rstrip())))
    return spans


def _expand(tokenizer: Any, ids: list[int], labels: list[int], picture_tokens: Sequence[int]) -> Encoded:
    """Repeat the placeholder of each picture as often as it has tokens."""
    image_token = tokenizer.convert_tokens_to_ids(PLACEHOLDER)
    if ids.count(image_token) != len(picture_tokens):
        raise UserError(f"{ids.count(image_token)} {PLACEHOLDER} for {len(picture_tokens)} picture(s)")
    counts = iter(picture_tokens)
    expanded = Encoded([], [])
    for token, label in zip(ids, labels, strict=True):
        times = next(counts) if token == image_token else 1
        expanded.input_ids.extend([token] * times)
        expanded.labels.extend([IGNORED if token == image_token else label] * times)
    return expanded
