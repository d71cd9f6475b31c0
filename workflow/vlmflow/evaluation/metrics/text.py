"""Text as metrics compare it: Unicode forms, Chinese characters, words."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable

_FINAL_PUNCTUATION = ".,;:!?。、"  # after NFKC, which maps full-width and half-width forms onto these
HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
KANA = "\u3040-\u30ff"
_UNSPACED = HAN + KANA
_CJK = _UNSPACED + "\uac00-\ud7af"
SPACED_WORD = rf"[^\W{_CJK}]"
"""A letter or digit of a script that puts spaces between words; Korean counts as Chinese and Japanese do."""
_PIECE = re.compile(rf"([{HAN}]+)|[{KANA}]|[^\W_{_UNSPACED}]+")
_SPACE_AT_UNSPACED = re.compile(rf"(?<=[{_UNSPACED}]) | (?=[{_UNSPACED}])")
_TOKEN = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")


def nfkc(text: str) -> str:
    """One form of each character: full-width letters become plain ones."""
    return unicodedata.normalize("NFKC", text)


def normalise(text: str) -> str:
    """NFKC, case folded, inner whitespace collapsed, outer whitespace and final punctuation removed.

    Text that is punctuation only is kept, so that it never equals an empty answer.
    """
    collapsed = " ".join(nfkc(nfkc(text).casefold()).split())
    return collapsed.rstrip(_FINAL_PUNCTUATION + " ") or collapsed


def valid(text: str) -> str:
    """``text`` with halves of surrogate pairs joined, or replaced by U+FFFD; libraries in C++ refuse them."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@functools.cache
def simplifier() -> Callable[[str], str]:
    """A function that turns traditional Chinese characters into simplified ones (OpenCC's ``t2s``)."""
    import opencc

    convert: Callable[[str], str] = opencc.OpenCC("t2s").convert
    return convert


def characters(text: str) -> str:
    """NFKC, whitespace collapsed, and removed beside Chinese and Japanese characters, where it says nothing."""
    return _SPACE_AT_UNSPACED.sub("", " ".join(nfkc(text).split()))


def tokens(text: str) -> list[str]:
    """What stands between whitespace, punctuation included; each Chinese or Japanese character by itself."""
    return _TOKEN.findall(nfkc(text))


def words(text: str) -> list[str]:
    """Letters and digits in lower case, without punctuation; Chinese is segmented by jieba, kana stand alone."""
    found: list[str] = []
    for piece in _PIECE.finditer(nfkc(text).lower()):
        found += _segmenter()(piece[1]) if piece[1] else [piece[0]]
    return found


@functools.cache
def _segmenter() -> Callable[[str], list[str]]:
    import jieba

    tokenizer = jieba.Tokenizer()
    # jieba's own set-up reads a file of that anybody may have written to the shared folder of temporary files.
    tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
    tokenizer.initialized = True
    segment: Callable[[str], list[str]] = tokenizer.lcut
    return segment
