"""Accuracy of multiple-choice questions: which option does a free answer choose?

The rules are those of VLMEvalKit's ``can_infer`` (a single option letter, or the text of a single option) and, before
them, of answers that say it plainly: ``B``, ``(B)``, ``B. cat``, ``The answer is B``, ``答案是B``. Options that
an answer rejects (``not A``, ``A is wrong``) do not count. No judge is asked.
"""

from __future__ import annotations

import re
import string

from vlmflow.evaluation.metrics.matching import contains
from vlmflow.evaluation.metrics.register import Item, item_metric
from vlmflow.evaluation.metrics.text import nfkc, normalise

Options = dict[str, str]
"""Letter -> text of an option."""

_MARK = re.compile(r"(?<![A-Za-z0-9])\(?([A-Z])\s?[.):、]")
_WHOLE = re.compile(r"\W*([A-Za-z])\W*")
_START = re.compile(r"\W{0,3}([A-Z])(?:[.):、]|\s*$)")
_SINGLE = r"(?<![A-Za-z0-9'])(?:[B-HJ-Z]|[AI](?!\s{1,3}(?!(?:is|was|or|and)\b)[a-z]))(?![A-Za-z0-9'])"
_ALONE = re.compile(_SINGLE)
"""A capital letter by itself that is not the article or the pronoun."""
_LETTER = r"\W{0,5}([A-Z])(?![A-Za-z'])"
_NAMED = re.compile(rf"(?i:\b(?:answer|option|choice)|答案|选项){_LETTER}")
_CONCLUDED = re.compile(
    r"(?i:\b(?:(?:answer|option|choice)(?:\W{0,3}is\b|\s?:)|choose|select|boxed)|答案(?:应该|应)?[是为:]|选项[是为:]|选择?)"
    rf"(?i:\W{{0,3}}(?:option\b|选项))?{_LETTER}"
    rf"(?!\W{{0,3}}(?:[,、/&+]|(?i:or|and)\b|[和或与及])\W{{0,3}}(?i:option\s|选项)?{_SINGLE})"
)
"""``The answer is B``, unless it goes on with ``or C``."""
_REJECTED = re.compile(
    r"(?:(?i:\b(?:not|neither|nor)\b)|n't|不是|不选)\W{0,3}(?i:option\s|选项)?[A-Z](?![A-Za-z'])"
    r"|(?<![A-Za-z0-9'])[A-Z]\W{0,3}(?:(?i:is|was)(?:n't|\s(?i:not|wrong|incorrect|false))\b|不是|是?(?:不对|错))"
)
"""An option that is said not to be it."""


@item_metric("multiple_choice")
def multiple_choice(item: Item) -> float:
    """1 when the answer chooses the option of a reference, given as its letter, ``B. cat``, or its text.

    The options are read from the question. Without any, a reference that is no letter needs the same text.
    """
    options = options_of(item.question)
    return max(_is_right(item.prediction, reference, options) for reference in item.references)


def options_of(question: str) -> Options:
    """The options ``A. ..``, ``(A) ..``, ``A) ..``, ``A: ..`` or ``A、..`` of a question, on lines or in a row."""
    text = nfkc(question)
    marks: list[re.Match[str]] = []
    run: list[re.Match[str]] = []
    for mark in _MARK.finditer(text):
        if mark[1] == "A":
            run = [mark]
        elif run and mark[1] == chr(ord(run[-1][1]) + 1):
            run.append(mark)
        marks = run if len(run) > len(marks) else marks
    if len(marks) < 2:
        return {}
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    texts = (text[mark.end() : end].strip().partition("\n")[0] for mark, end in zip(marks, ends, strict=True))
    return {mark[1]: option.strip(" ,;") for mark, option in zip(marks, texts, strict=True)}


def chosen(answer: str, options: Options) -> str | None:
    """The letter of the option that an answer chooses, any letter without options; None when that is unclear."""
    text, letters = nfkc(answer), options or string.ascii_uppercase
    if (whole := _WHOLE.fullmatch(text)) and whole[1].upper() in letters:
        return whole[1].upper()
    same = [letter for letter, option in options.items() if normalise(option) == normalise(text)]
    if len(same) == 1:
        return same[0]
    start = _START.match(text)
    if start and start[1] in options and normalise(options[start[1]]) == normalise(text[start.end() :]):
        return start[1]
    text = _REJECTED.sub(" ", text)
    if (concluded := _CONCLUDED.findall(text)) and concluded[-1] in letters:
        return str(concluded[-1])
    named = {letter for letter in (*_NAMED.findall(text), *_ALONE.findall(text)) if letter in letters}
    if named:
        return named.pop() if len(named) == 1 else None
    return _by_text(text, options)


def _by_text(text: str, options: Options) -> str | None:
    """The letter of the only option whose text is in the answer; options within a longer one do not count."""
    found = [letter for letter, option in options.items() if option and contains(text, option)]
    longest = [
        letter
        for letter in found
        if not any(other != letter and contains(options[other], options[letter]) for other in found)
    ]
    return longest[0] if len(longest) == 1 else None


def _is_right(prediction: str, reference: str, options: Options) -> float:
    right = chosen(reference, options) if options else None
    if right is not None:
        return float(chosen(prediction, options) == right)
    text = nfkc(reference)
    letter = None if options else _WHOLE.fullmatch(text) or _START.match(text)
    if letter and chosen(prediction, {}) == letter[1].upper():
        return 1.0
    named = text[letter.end() :].strip() if letter else ""
    return float(normalise(prediction) in (normalise(text), normalise(named or text)))
