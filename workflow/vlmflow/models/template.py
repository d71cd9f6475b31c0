"""The one prompt template: rendering, token ids and label masks, for training and generation alike.

The template is a Jinja file, stored in the model directory as its chat template, so that every engine which loads the
directory renders the same text.
"""

from __future__ import annotations

import bisect
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from vlmflow.data.records import Turn
from vlmflow.errors import UserError

IGNORED = -100
"""Label of a position that is not trained (the ignore_index of torch's cross entropy)."""
PLACEHOLDER = "<image>"
_CONTROL = re.compile(r"<\|[^|<>\s]{1,40}\|>|</?s>|<(?:start|end)_of_turn>")
"""What control tokens look like in the chat templates in use."""


@dataclass(frozen=True)
class Encoded:
    """A conversation as token ids, picture tokens expanded; ``labels`` has the same length."""

    input_ids: list[int]
    labels: list[int]


class Counts(NamedTuple):
    """A conversation in numbers: its tokens without those of pictures, its pictures, the tokens that are trained."""

    text: int
    pictures: int
    supervised: int


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
    text, spans = _layout(tokenizer, _with_pictures(tokenizer, turns))
    encoding = _backend(tokenizer).encode(text, add_special_tokens=False)
    ids = encoding.ids
    labels = [IGNORED] * len(ids)
    for first, last in _token_ranges(encoding, text, spans):
        labels[first:last] = ids[first:last]
    return _expand(tokenizer, ids, labels, picture_tokens)


def encode_prompt(tokenizer: Any, turns: Sequence[Turn], picture_tokens: Sequence[int]) -> list[int]:
    """Token ids of a conversation up to where the assistant is to speak."""
    text = render(tokenizer, _with_pictures(tokenizer, turns), answer=True)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return _expand(tokenizer, ids, ids, picture_tokens).input_ids


def count(tokenizer: Any, conversations: Sequence[Sequence[Turn]]) -> list[Counts]:
    """What :func:`encode` would make of each conversation, counted: one call of the tokenizer for all of them."""
    token = picture_token(tokenizer)
    layouts = [_layout(tokenizer, _with_pictures(tokenizer, turns)) for turns in conversations]
    encodings = _backend(tokenizer).encode_batch([text for text, _ in layouts], add_special_tokens=False)
    counts = []
    for (text, spans), encoding in zip(layouts, encodings, strict=True):
        pictures = text.count(token)
        supervised = sum(last - first for first, last in _token_ranges(encoding, text, spans))
        counts.append(Counts(len(encoding) - pictures, pictures, supervised))
    return counts


def picture_token(tokenizer: Any) -> str:
    """The token that stands for a picture's features: InternVL tokenizers name theirs, LLaVA's is the placeholder."""
    return getattr(tokenizer, "context_image_token", None) or PLACEHOLDER


def special_tokens(tokenizer: Any) -> set[str]:
    """Every text that the tokenizer reads as a control token, wherever it stands."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return added | set(tokenizer.all_special_tokens)


def check_template(tokenizer: Any) -> None:
    """Raise :class:`UserError` if the template renders control tokens that the tokenizer does not have."""
    turns = [Turn(role, "x") for role in ("system", "user", "assistant")]
    found = set(_CONTROL.findall(render(tokenizer, turns, answer=True)))
    for token in sorted({*found, picture_token(tokenizer)}):
        pieces = len(tokenizer(token, add_special_tokens=False)["input_ids"])
        if pieces != 1:
            raise UserError(
                f"the prompt template does not fit the tokenizer: {token} is {pieces} tokens, not one",
                "choose the `template` of the model that was trained with this tokenizer",
            )


def _with_pictures(tokenizer: Any, turns: Sequence[Turn]) -> Sequence[Turn]:
    """The turns with each placeholder as the model family writes a picture: InternVL's stands between two tokens."""
    token = picture_token(tokenizer)
    if token == PLACEHOLDER:
        return turns
    written = f"{tokenizer.start_image_token}{token}{tokenizer.end_image_token}"
    return [Turn(turn.role, turn.text.replace(PLACEHOLDER, written)) for turn in turns]


def _layout(tokenizer: Any, turns: Sequence[Turn]) -> tuple[str, list[tuple[int, int]]]:
    """The text of a conversation, and the character ranges that the assistant is to produce, end of turn included.

    A conversation is rendered once; only where the template makes more of the turns than their texts between constant
    ones are all its beginnings rendered too.
    """
    text = render(tokenizer, turns, answer=False)
    skeleton = _skeleton(tokenizer, tokenizer.chat_template, tuple(turn.role for turn in turns))
    if skeleton is None or text != _filled(skeleton[0], turns):
        return text, _answer_spans(tokenizer, turns, text)
    constants, ends = skeleton
    spans, position = [], len(constants[0])
    for turn, constant, end in zip(turns, constants[1:], ends, strict=True):
        length = len(turn.text)
        if turn.role == "assistant":
            spans.append((position, position + (length + end if end else len(turn.text.rstrip()))))
        position += length + len(constant)
    return text, spans


def _filled(constants: Sequence[str], turns: Sequence[Turn]) -> str:
    parts = [constants[0]]
    for turn, constant in zip(turns, constants[1:], strict=True):
        parts += [turn.text, constant]
    return "".join(parts)


@functools.lru_cache(maxsize=256)
def _skeleton(tokenizer: Any, template: str, roles: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[int, ...]] | None:
    """What the template puts before, between and after texts of these roles, and how much of it ends each answer.

    None if the template does not simply append one turn to the other.
    """
    del template  # part of the key
    turns = [Turn(role, f"\ue000{index}\ue001") for index, role in enumerate(roles)]  # type: ignore[arg-type]
    text = render(tokenizer, turns, answer=False)
    try:
        stops = iter(_answer_spans(tokenizer, turns, text))
    except UserError:
        return None
    constants, ends, position = [], [], 0
    for turn in turns:
        before, found, _ = text[position:].partition(turn.text)
        if not found or text.count(turn.text) != 1:
            return None
        constants.append(before)
        position += len(before) + len(found)
        ends.append(next(stops)[1] - position if turn.role == "assistant" else 0)
    return (*constants, text[position:]), tuple(ends)


def _backend(tokenizer: Any) -> Any:
    """The library behind a fast tokenizer; the wrapper makes Python lists of what is not asked for."""
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    return backend


def _token_ranges(encoding: Any, text: str, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The tokens (from, until) that lie wholly within each range of characters."""
    ranges = []
    for start, end in spans:
        first, last = _token_at(encoding, text, start), _token_at(encoding, text, end)
        if first is None or last is None:  # a token lies across the edge, or a character has none
            offsets = encoding.offsets
            first = bisect.bisect_left(offsets, start, key=itemgetter(0))
            last = bisect.bisect_right(offsets, end, key=itemgetter(1))
        ranges.append((first, max(first, last)))
    return ranges


def _token_at(encoding: Any, text: str, position: int) -> int | None:
    """The token that begins at this character; None if no token does."""
    if position == len(text):
        return len(encoding)
    token: int | None = encoding.char_to_token(position)
    return token if token is not None and encoding.token_to_chars(token)[0] == position else None


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
    image_token = tokenizer.convert_tokens_to_ids(picture_token(tokenizer))
    if ids.count(image_token) != len(picture_tokens):
        raise UserError(f"{ids.count(image_token)} {PLACEHOLDER} for {len(picture_tokens)} picture(s)")
    counts = iter(picture_tokens)
    expanded = Encoded([], [])
    for token, label in zip(ids, labels, strict=True):
        times = next(counts) if token == image_token else 1
        expanded.input_ids.extend([token] * times)
        expanded.labels.extend([IGNORED if token == image_token else label] * times)
    return expanded
