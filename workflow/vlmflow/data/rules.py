"""What makes a draft a usable conversation, beyond the schema of its format."""

from __future__ import annotations

import re
from collections.abc import Iterator

from vlmflow.data.boxes import BOX_TAG, wrong_markup, wrong_tags
from vlmflow.data.formats.draft import IMAGE, MEDIA, VIDEO, Draft, Format, Value
from vlmflow.data.raw import Finding
from vlmflow.data.records import Turn
from vlmflow.data.report import shown
from vlmflow.data.shape import known_keys

_SPECIAL = re.compile(r"<\|[^|<>\s]{1,40}\|>|</?s>|</?img>|</video>|<IMG_CONTEXT>|<unk>|<pad>")
"""Tokens of common chat templates; those of the model itself are looked for when its tokens are counted."""
_CERTAIN = ("image", "images", "video", "videos")
"""Keys of pictures for certain; a record with pictures may tell more of them under the others."""
_NEARLY = re.compile(r"<\s*(?:image|video)[\s_-]*\d*\s*/?>", re.IGNORECASE)
_CONTROLS = bytes([*range(9), 11, 12, *range(14, 32), 127])
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_BROKEN = re.compile("[\ud800-\udfff]")
_UNNAMEABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_URL = re.compile(r"data:|[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_LONGEST_NAME, _LONGEST_PART = 1000, 255  # bytes of an id or a path, and of a file's own name (Linux)


def wrong_content(draft: Draft, form: Format, value: Value, placeholder: str) -> list[Finding]:
    """All that is wrong with a draft; ``value`` is the record it was made from."""
    return list(_findings(draft, form, value, placeholder))


def _findings(draft: Draft, form: Format, value: Value, placeholder: str) -> Iterator[Finding]:
    telling = _CERTAIN if draft.images or draft.videos else MEDIA
    elsewhere = [key for key in telling if value.get(key) and key not in known_keys(form.schema)]
    for key in elsewhere:
        yield f"pictures under another key: '{key}'", f"name all of them under '{form.image_field}'", key
    yield from _wrong_roles([turn.role for turn in draft.turns], form, value)
    named = [("id", draft.id), ("category", draft.category), *((form.image_field, name) for name in draft.images)]
    for where, text in [*named, *(("videos", name) for name in draft.videos)]:
        # The quick way for ordinary names.
        if text is not None and (not 0 < len(text) < 64 or ":" in text or _UNNAMEABLE.search(text)):
            yield from ((reason, advice, where) for reason, advice in _wrong_name(text, where in ("id", "category")))
    texts = [turn.text for turn in draft.turns]
    whole = "\n".join(texts)
    asked = {tag: _asked(draft, tag) if tag in whole else 0 for tag in (IMAGE, VIDEO)}
    if not _is_plain(whole, asked[IMAGE]) or not all(map(str.strip, texts)):
        yield from _wrong_texts(draft, form, value)
    for index, text in enumerate(draft.answers):
        for reason, advice in _wrong_text(Turn("assistant", text)):
            yield reason, advice, f"answers[{index}]"
    if draft.boxes or draft.refs or BOX_TAG in whole or "<box>" in whole:
        yield from ((reason, advice, "objects") for reason, advice in wrong_tags(texts, draft.refs, draft.boxes))
    for tag, what, files in ((IMAGE, "picture", draft.images), (VIDEO, "video", draft.videos)):
        if asked[tag] != len(files) and (asked[tag] or placeholder == "error") and not elsewhere:
            each = f"write {tag} into the questions once for each {what}"
            advice = each if files else f"name the {what} in the record, or remove {tag}"
            where = form.turn_field(value, 0).split("[")[0]
            yield f"number of placeholders: {asked[tag]} {tag} for {len(files)} {what}(s)", advice, where


def _is_plain(text: str, placed: int) -> bool:
    """Whether nothing but ``placed`` pictures needs a closer look; nearly every record is so."""
    if text.count("<") != placed or text.count(IMAGE) != placed:
        return False
    try:
        content = text.encode()
    except UnicodeEncodeError:
        return False
    return len(content.translate(None, _CONTROLS)) == len(content)


def _wrong_name(name: str, is_label: bool) -> Iterator[tuple[str, str]]:
    """What is wrong with the name of a file, or with a label: an id or a category."""
    if _UNNAMEABLE.search(name):
        yield f"control character in a name: {shown(name)}", "remove it"
    elif not name:
        yield "empty value: a file without a name", "name the file"
    elif not is_label and _URL.match(name):
        yield f"not a file: {shown(name, 60)}", "download it into the data set's folder and name the file"
    elif len(name.encode()) > _LONGEST_NAME or (
        not is_label and max(len(part.encode()) for part in name.split("/")) > _LONGEST_PART
    ):
        yield f"name too long: {shown(name)} has {len(name):,} characters", "give it a shorter one"


def _asked(draft: Draft, tag: str) -> int:
    return sum(turn.text.count(tag) for turn in draft.turns if turn.role == "user")


def _wrong_texts(draft: Draft, form: Format, value: Value) -> Iterator[Finding]:
    for index, turn in enumerate(draft.turns):
        for reason, advice in _wrong_text(turn):
            yield reason, advice, form.turn_field(value, index)


def _wrong_roles(roles: list[str], form: Format, value: Value) -> Iterator[Finding]:
    if not roles:
        return
    start = int(roles[0] == "system")
    for index, role in enumerate(roles[start:]):
        expected = ("user", "assistant")[index % 2]
        if role != expected:
            advice = "user and assistant take turns after an optional system text; join or remove turns"
            where = form.turn_field(value, start + index).rsplit(".", 1)[0]
            yield f"wrong order of roles: {role} instead of {expected}", advice, where
            return
    if roles[-1] != "assistant":
        yield "no answer: the assistant does not have the last word", "add the answer", form.turn_field(value, 0)


def _wrong_text(turn: Turn) -> Iterator[tuple[str, str]]:
    text = turn.text
    if not text.strip():
        yield "empty text: nothing to read or learn", "write the text, or remove the record"
    if special := _SPECIAL.search(text):
        yield f"special token in the text: {special[0]}", "remove it; the chat template adds such tokens itself"
    nearly = _NEARLY.findall(text) if turn.role == "user" else []
    for near in (found for found in nearly if found not in (IMAGE, VIDEO)):
        right = VIDEO if "vid" in near.lower() else IMAGE
        yield f"misspelt placeholder: {near}", f"write {right} where one is meant, other words elsewhere"
    for tag in (IMAGE, VIDEO):
        if turn.role != "user" and tag in text:
            yield f"placeholder outside a question: {tag} from {turn.role}", "move it to a question"
    if broken := _BROKEN.search(text):
        byte = ord(broken[0]) - 0xDC00
        what = (
            f"no UTF-8 text: byte 0x{byte:x}" if 0x80 <= byte <= 0xFF else "broken character: half of a surrogate pair"
        )
        yield what, "write the text anew as UTF-8"
    if control := _CONTROL.search(text):
        yield f"control character in the text: 0x{ord(control[0]):02x}", "remove it"
    if "<box>" in text or "</box>" in text:
        yield from wrong_markup(text)


def place(draft: Draft, tag: str, count: int, placeholder: str) -> None:
    """Put ``count`` placeholders, a line each, before the first or last question."""
    asked = [index for index, turn in enumerate(draft.turns) if turn.role == "user"]
    index = asked[0 if placeholder == "first" else -1]
    draft.turns[index] = Turn("user", f"{tag}\n" * count + draft.turns[index].text)
