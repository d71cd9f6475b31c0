"""The one prompt template: rendering, token ids and label masks, for training and generation alike.

The template is a Jinja file, stored in the model directory as its chat template, so that every engine which loads the
directory renders the same text. Templates write the BOS themselves; tokenizers do not add one
(vlmflow.models.template_tokenizer).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vlmflow.data.records import Turn
from vlmflow.errors import UserError
from vlmflow.models.template_spans import layout, render, token_ranges

IGNORED = -100
"""Label of a position that is not trained (the ignore_index of torch's cross entropy)."""
PLACEHOLDER = "<image>"
_PICTURES = {"llava": PLACEHOLDER, "internvl": "<IMG_CONTEXT>"}
"""Token of a picture in the text that a family's processor expands."""
_FOLDER = Path(__file__).parent
_INCLUDE = re.compile(r"\{%- include '([\w.-]+)' -%\}\n?")
_SHARED = "shared."
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


def template_names() -> list[str]:
    """The names that a model's ``template`` can have."""
    names = [path.name.removeprefix("template.").removesuffix(".jinja") for path in _FOLDER.glob("template.*.jinja")]
    return sorted(name for name in names if not name.startswith(_SHARED))


def chat_template(name: str, family: str = "llava") -> str:
    """The Jinja source of a named template, with pictures as a family's processor and LMDeploy expect them.

    Raises :class:`UserError` for a name that is none, and for ``plain`` with a family that frames its pictures.
    """
    if name not in template_names():
        raise UserError(f"no prompt template '{name}'", f"there is {', '.join(template_names())}", field="template")
    if name == "plain" and family != "llava":
        raise UserError(f"the prompt template 'plain' is LLaVA's, not {family}'s", field="template")
    return f"{{%- set picture = '{_PICTURES[family]}' -%}}\n{_source(name)}"


def _source(name: str) -> str:
    text = (_FOLDER / f"template.{name}.jinja").read_text(encoding="utf-8")
    return _INCLUDE.sub(lambda found: _source(found[1]), text)


def encode(tokenizer: Any, turns: Sequence[Turn], picture_tokens: Sequence[int]) -> Encoded:
    """Token ids and labels of a whole conversation.

    Trained are the assistant's words and the end-of-turn token after them; prompts, pictures and separators are not
    (labels :data:`IGNORED`). ``picture_tokens`` holds the number of tokens of each picture, in order.
    """
    text, spans = layout(tokenizer, _with_pictures(tokenizer, turns))
    encoding = _backend(tokenizer).encode(text, add_special_tokens=False)
    ids = encoding.ids
    labels = [IGNORED] * len(ids)
    for first, last in token_ranges(encoding, text, spans):
        labels[first:last] = ids[first:last]
    return _expand(tokenizer, ids, labels, picture_tokens)


def encode_prompt(tokenizer: Any, turns: Sequence[Turn], picture_tokens: Sequence[int]) -> list[int]:
    """Token ids of a conversation up to where the assistant is to speak."""
    text = render(tokenizer, _with_pictures(tokenizer, turns), answer=True)
    ids = _ids(tokenizer, text)
    return _expand(tokenizer, ids, ids, picture_tokens).input_ids


def count(tokenizer: Any, conversations: Sequence[Sequence[Turn]]) -> list[Counts]:
    """What :func:`encode` would make of each conversation, counted: one call of the tokenizer for all of them."""
    token = picture_token(tokenizer)
    layouts = [layout(tokenizer, _with_pictures(tokenizer, turns)) for turns in conversations]
    encodings = _backend(tokenizer).encode_batch([text for text, _ in layouts], add_special_tokens=False)
    counts = []
    for (text, spans), encoding in zip(layouts, encodings, strict=True):
        pictures = text.count(token)
        spanned = sum(last - first for first, last in token_ranges(encoding, text, spans))
        answered = sum(text.count(token, *span) for span in spans)  # pictures in answers are not trained
        counts.append(Counts(len(encoding) - pictures, pictures, spanned - answered))
    return counts


def picture_token(tokenizer: Any) -> str:
    """The token that stands for a picture's features: InternVL tokenizers name theirs, LLaVA's is the placeholder."""
    return getattr(tokenizer, "context_image_token", None) or PLACEHOLDER


def special_tokens(tokenizer: Any) -> set[str]:
    """Every text that the tokenizer reads as a control token, wherever it stands."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return added | set(tokenizer.all_special_tokens)


def check_template(tokenizer: Any) -> None:
    """Raise :class:`UserError` unless training and every engine get the same tokens from this template and tokenizer.

    Control tokens must be in the vocabulary, answers must have an end, the tokenizer must add nothing itself, and a
    text after a picture must be read as if it stood alone: LMDeploy tokenizes the texts between pictures one by one.
    """
    turns = [Turn(role, "x") for role in ("system", "user", "assistant")]
    text, spans = layout(tokenizer, turns)
    for token in sorted({*_CONTROL.findall(text), picture_token(tokenizer)}):
        pieces = len(_ids(tokenizer, token))
        if pieces != 1:
            raise UserError(
                f"the prompt template does not fit the tokenizer: {token} is {pieces} tokens, not one",
                "choose the `template` of the model that was trained with this tokenizer",
            )
    if text[: spans[-1][1]].endswith("x"):
        raise UserError("the prompt template puts nothing after an answer: generation would not end")
    if tokenizer(text)["input_ids"] != _ids(tokenizer, text):
        raise UserError(
            "the tokenizer adds tokens to a text: other engines would get a BOS twice, or one that the template lacks",
            "make the model directory again; its tokenizer must have add_bos_token and add_eos_token off",
        )
    picture, alone = picture_token(tokenizer), _ids(tokenizer, "\nx")
    if picture == PLACEHOLDER and _ids(tokenizer, f"{picture}\nx")[1:] != alone:
        raise UserError(
            "the tokenizer reads a text after a picture differently from one that stands alone",
            "its tokenizer.json must put a space before every text (prepend_scheme 'always'), not before the first",
        )


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _with_pictures(tokenizer: Any, turns: Sequence[Turn]) -> Sequence[Turn]:
    """The turns with each placeholder as the model family writes a picture: InternVL's stands between two tokens."""
    token = picture_token(tokenizer)
    if token == PLACEHOLDER:
        return turns
    written = f"{tokenizer.start_image_token}{token}{tokenizer.end_image_token}"
    return [Turn(turn.role, turn.text.replace(PLACEHOLDER, written)) for turn in turns]


def _backend(tokenizer: Any) -> Any:
    """The library behind a fast tokenizer; the wrapper makes Python lists of what is not asked for."""
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    return backend


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
