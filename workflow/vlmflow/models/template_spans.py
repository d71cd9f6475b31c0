"""The text of a conversation, and which of its characters and tokens the assistant is to produce."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from vlmflow.data.records import Turn
from vlmflow.errors import UserError


def render(tokenizer: Any, turns: Sequence[Turn], *, answer: bool) -> str:
    """The text of a conversation; with ``answer`` it ends where the assistant is to speak.

    A picture is one token, which the family's processor expands.
    """
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer)
    return text


def layout(tokenizer: Any, turns: Sequence[Turn]) -> tuple[str, list[tuple[int, int]]]:
    """The text of a conversation, and the character ranges that the assistant is to produce, end of turn included.

    A conversation is rendered once; only where the template makes more of the turns than their texts between constant
    ones are all its beginnings rendered too.
    """
    text = render(tokenizer, turns, answer=False)
    skeleton = _skeleton(tokenizer, tokenizer.chat_template, tuple(turn.role for turn in turns))
    if skeleton is None or text != _filled(skeleton.constants, turns):
        return text, answer_spans(tokenizer, turns, text)
    spans, position = [], len(skeleton.constants[0])
    for turn, constant, edges in zip(turns, skeleton.constants[1:], skeleton.edges, strict=True):
        end = position + len(turn.text)
        if edges is not None:
            spans.append((position - edges[0], end + edges[1]))
        position = end + len(constant)
    return text, spans


def _filled(constants: Sequence[str], turns: Sequence[Turn]) -> str:
    parts = [constants[0]]
    for turn, constant in zip(turns, constants[1:], strict=True):
        parts += [turn.text, constant]
    return "".join(parts)


class _Skeleton(NamedTuple):
    """A template between turns of certain roles."""

    constants: tuple[str, ...]
    """What stands before, between and after the texts."""
    edges: tuple[tuple[int, int] | None, ...]
    """Characters before and after each answer that the assistant is to produce too; None for other turns."""


@functools.lru_cache(maxsize=256)
def _skeleton(tokenizer: Any, template: str, roles: tuple[str, ...]) -> _Skeleton | None:
    """What the template makes of turns of these roles; None if it does not simply append one to the other."""
    del template  # part of the key
    turns = [Turn(role, f"\ue000{index}\ue001") for index, role in enumerate(roles)]  # type: ignore[arg-type]
    text = render(tokenizer, turns, answer=False)
    try:
        spans = iter(answer_spans(tokenizer, turns, text))
    except UserError:
        return None
    constants: list[str] = []
    edges: list[tuple[int, int] | None] = []
    position = 0
    for turn in turns:
        before, found, _ = text[position:].partition(turn.text)
        if not found or text.count(turn.text) != 1:
            return None
        constants.append(before)
        start, position = position + len(before), position + len(before) + len(found)
        span = next(spans) if turn.role == "assistant" else None
        edges.append(span and (start - span[0], span[1] - position))
    return _Skeleton((*constants, text[position:]), tuple(edges))


def token_ranges(encoding: Any, text: str, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The tokens (from, until) that lie within each range of characters.

    A last one may reach over white space: control tokens of Phi-3 take what follows them along (``rstrip``).
    """
    ranges = []
    for start, end in spans:
        first, last = _token_at(encoding, text, start), _token_at(encoding, text, end)
        if first is None or last is None:  # a token lies across the edge, or a character has none
            offsets = encoding.offsets
            first = bisect.bisect_left(offsets, start, key=itemgetter(0))
            last = bisect.bisect_right(offsets, end, key=itemgetter(1))
            if last < len(offsets) and offsets[last][0] < end and text[end : offsets[last][1]].isspace():
                last += 1
        ranges.append((first, max(first, last)))
    return ranges


def _token_at(encoding: Any, text: str, position: int) -> int | None:
    """The token that begins at this character; None if no token does."""
    if position == len(text):
        return len(encoding)
    token: int | None = encoding.char_to_token(position)
    return token if token is not None and encoding.token_to_chars(token)[0] == position else None


def answer_spans(tokenizer: Any, turns: Sequence[Turn], text: str) -> list[tuple[int, int]]:
    """Character ranges of ``text`` that the assistant is to produce: from where a prompt ends to the end of the turn.

    White space after an end-of-turn token separates turns; where there is no such token it ends the turn itself.
    """
    spans = []
    for index, turn in enumerate(turns):
        if turn.role == "assistant":
            prompt = render(tokenizer, turns[:index], answer=True)
            until = render(tokenizer, turns[: index + 1], answer=False)
            answer = until[len(prompt) :]
            words = turn.text if turn.text in answer else turn.text.strip()  # templates may trim
            before, found, after = answer.partition(words) if words else ("", True, answer)
            if not (text.startswith(until) and until.startswith(prompt)) or not found or before.strip():
                raise UserError(
                    "the chat template renders a turn differently when more turns follow",
                    "answers cannot be told from prompts; use a template that only appends",
                )
            spans.append((len(prompt), len(until) - len(after) + len(after.rstrip() or after)))
    return spans
