"""What is trained is what the assistant says, and engines see the tokens that training saw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from test_template_support import CONTROL, byte_level, make_tokenizer, sentencepiece, stored
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from vlmflow.data.records import Turn
from vlmflow.errors import UserError
from vlmflow.models.directory import load_processor
from vlmflow.models.families.internvl import PictureProcessor
from vlmflow.models.pictures import picture_lengths
from vlmflow.models.template import IGNORED, count, encode, encode_prompt, picture_token
from vlmflow.models.template_spans import answer_spans, layout, render

CONVERSATIONS = {
    "single-turn": [Turn("user", "<image>\nWhat is this?"), Turn("assistant", "A bus.")],
    "multi-turn": [
        Turn("user", "<image>\nWhat is this?"), Turn("assistant", "A bus."),
        Turn("user", "Which colour?"), Turn("assistant", "Red and white."),
    ],
    "multi-image": [Turn("user", "<image><image>\nWhich is older?"), Turn("assistant", "The first.")],
    "system": [Turn("system", "Be brief."), Turn("user", "Hi"), Turn("assistant", "Hello.")],
    "empty system": [Turn("system", ""), Turn("user", "<image>\nHi"), Turn("assistant", "Hello.")],
    "unicode": [Turn("user", "<image>\n这是什么？🍜"), Turn("assistant", "肠粉 🦊🏽‍🚀, cafe\u0301, ﷺ")],
    "placeholder in an answer": [Turn("user", "<image>\nShow it."), Turn("assistant", "See <image> here.")],
    "white space": [Turn("user", "Hi "), Turn("assistant", "A.  \n"), Turn("user", " Hi"), Turn("assistant", "A. ")],
    "text like a turn": [Turn("user", "USER: A ASSISTANT:"), Turn("assistant", "USER: A"), Turn("user", "A")],
}  # fmt: skip
END = {"plain": "\n", "vicuna": "</s>", "llama3": "<|eot_id|>", **dict.fromkeys(
    ("phi3", "phi3-chat", "phi3-chat-v1.5"), "<|end|>")}  # fmt: skip
INTERNVL = [name for name in CONTROL if name.startswith(("internvl", "hermes", "phi3-chat"))]
CASES = [*((name, "llava") for name in CONTROL), *((name, "internvl") for name in INTERNVL)]
KINDS: dict[str, Callable[[], Any]] = {"bytes": byte_level, "sentencepiece": sentencepiece}


@pytest.fixture(scope="module", params=KINDS)
def tokenizers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Any]:
    """Tokenizers as they come out of model directories."""
    made: dict[tuple[str, str], Any] = {}

    def get(name: str, family: str) -> Any:
        if (name, family) not in made:
            tokenizer = make_tokenizer(name, family, KINDS[request.param]())
            made[name, family] = stored(tokenizer, tmp_path_factory.mktemp("tokenizer"))
        return made[name, family]

    return get


def pictures(turns: Sequence[Turn]) -> list[int]:
    return [3] * sum(turn.text.count("<image>") for turn in turns)


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize(("name", "family"), CASES)
def test_trained_are_the_answers_with_their_ends(
    tokenizers: Callable[[str, str], Any], name: str, family: str, conversation: str
) -> None:
    tokenizer, turns = tokenizers(name, family), CONVERSATIONS[conversation]
    if name == "plain" and conversation == "text like a turn":
        turns = turns[:2]
    encoded = encode(tokenizer, turns, pictures(turns))
    trained = [label for label in encoded.labels if label != IGNORED]
    end = END.get(name, "<|im_end|>")
    shown = "<img></img>" if family == "internvl" else ""
    answers = [turn.text.replace("<image>", shown) for turn in turns if turn.role == "assistant"]
    space = " " if name == "vicuna" else ""
    expected, decoded = "".join(space + answer + end for answer in answers), tokenizer.decode(trained)
    if tokenizer.unk_token:  # sentencepiece has no exact spaces after control tokens
        expected, decoded = "".join(expected.split()), "".join(decoded.split())
    assert decoded == expected
    assert all(label in (token, IGNORED) for token, label in zip(encoded.input_ids, encoded.labels, strict=True))
    counted = count(tokenizer, [turns])[0]
    assert counted == (len(encoded.input_ids) - 3 * len(pictures(turns)), len(pictures(turns)), len(trained))


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize(("name", "family"), CASES)
def test_a_prompt_is_the_beginning_of_the_training_sequence(
    tokenizers: Callable[[str, str], Any], name: str, family: str, conversation: str
) -> None:
    tokenizer, turns = tokenizers(name, family), CONVERSATIONS[conversation]
    encoded = encode(tokenizer, turns, pictures(turns))
    for index, turn in enumerate(turns):
        if turn.role == "assistant":
            prompt = encode_prompt(tokenizer, turns[:index], pictures(turns[:index]))
            assert encoded.input_ids[: len(prompt)] == prompt
            assert encoded.labels[len(prompt)] != IGNORED


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", CONTROL)
def test_the_short_way_to_the_answers_agrees_with_the_long_one(name: str, conversation: str) -> None:
    tokenizer, turns = make_tokenizer(name), CONVERSATIONS[conversation]
    text, spans = layout(tokenizer, turns)
    assert text == render(tokenizer, turns, answer=False)
    assert spans == answer_spans(tokenizer, turns, text)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("internvl2", 7), ("chatml", 7), ("phi3-chat", 7), ("llama3", 7), ("vicuna", 7), ("plain", 6)],
)
def test_the_number_of_trained_tokens_is_golden(name: str, expected: int) -> None:
    """Six characters, one a token, and the end of the turn, which plain's newline shares with the full stop."""
    tokenizer = make_tokenizer(name)
    assert count(tokenizer, [CONVERSATIONS["single-turn"]])[0].supervised == expected


def lmdeploy(tokenizer: Any, family: str, turns: Sequence[Turn], pictures: Sequence[int]) -> list[int]:
    """LMDeploy 0.18: proc_messages in vl/model/internvl.py and llava_hf.py, to_pytorch_aux in base.py, tokenizer.py."""
    mark = "<img><IMG_CONTEXT></img>" if family == "internvl" else "<IMAGE_TOKEN>"
    messages = [{"role": turn.role, "content": turn.text.replace("<image>", mark)} for turn in turns]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, tools=None)
    splitter = "<IMG_CONTEXT>" if family == "internvl" else mark
    ids: list[int] = []
    for index, segment in enumerate(prompt.split(splitter)):
        if index:
            ids += [tokenizer.convert_tokens_to_ids(picture_token(tokenizer))] * pictures[index - 1]
        encoded = tokenizer.encode(segment, add_special_tokens=True)
        ids += encoded[1:] if index and encoded[:1] == [tokenizer.bos_token_id] else encoded
    return ids


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize(("name", "family"), [case for case in CASES if case[0] != "plain"])
def test_lmdeploy_sees_the_same_tokens(
    tokenizers: Callable[[str, str], Any], name: str, family: str, conversation: str
) -> None:
    turns = CONVERSATIONS[conversation]
    turns = turns[:-1] if turns[-1].role == "assistant" else turns
    tokenizer = tokenizers(name, family)
    expected = lmdeploy(tokenizer, family, turns, pictures(turns))
    assert encode_prompt(tokenizer, turns, pictures(turns)) == expected


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", ["internvl2", "hermes-2", "phi3-chat"])
def test_the_processor_of_internvl_makes_the_same_tokens(
    tokenizers: Callable[[str, str], Any], name: str, conversation: str
) -> None:
    """transformers' own text handling, pictures of one tile of 3 tokens."""
    tokenizer, turns = tokenizers(name, "internvl"), CONVERSATIONS[conversation]
    turns = turns[:-1] if turns[-1].role == "assistant" else turns
    cut = GotOcr2ImageProcessorPil(size={"height": 8, "width": 8}, crop_to_patches=False)
    processor = PictureProcessor(cut, tokenizer, 3, tokenizer.chat_template)
    images = [Image.new("RGB", (8, 8), "red") for _ in pictures(turns)] or None
    text = render(tokenizer, turns, answer=True)
    theirs = processor(text=text, images=images, crop_to_patches=False)["input_ids"][0]
    assert encode_prompt(tokenizer, turns, pictures(turns)) == list(theirs)


@pytest.mark.parametrize("text", ["A bus.", " A bus. \n"])
def test_a_template_that_trims_keeps_its_answers(text: str) -> None:
    """Llama 3's own template and many others strip what people write."""
    tokenizer = make_tokenizer("llama3")
    trimming = (
        "{%- for m in messages -%}{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim"
    )
    tokenizer.chat_template = (
        trimming + " + '<|eot_id|>' -}}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}{%- endif -%}"
    )
    turns = [Turn("user", "Hi "), Turn("assistant", text), Turn("user", "Hi"), Turn("assistant", text)]
    trained = [label for label in encode(tokenizer, turns, []).labels if label != IGNORED]
    assert tokenizer.decode(trained) == "A bus.<|eot_id|>" * 2


def test_a_template_that_rewrites_turns_is_refused() -> None:
    tokenizer = make_tokenizer("chatml")
    tokenizer.chat_template = "{%- for m in messages -%}{{- loop.revindex ~ m.content -}}{%- endfor -%}"
    with pytest.raises(UserError, match="renders a turn differently"):
        encode(tokenizer, CONVERSATIONS["multi-turn"], [3])


def test_pictures_and_placeholders_must_match() -> None:
    with pytest.raises(UserError, match="1 <image> for 2 picture"):
        encode(make_tokenizer("chatml"), CONVERSATIONS["single-turn"], [4, 4])


@pytest.mark.parametrize(
    "conversation", ["single-turn", "multi-turn", "multi-image", "system", "empty system", "unicode"]
)
def test_the_processor_of_a_llava_directory_makes_the_same_tokens(tiny_model: Path, conversation: str) -> None:
    """What transformers users get from a directory is what we trained on, special tokens asked for or not."""
    processor, turns = load_processor(tiny_model), CONVERSATIONS[conversation][:-1]
    images = [Image.new("RGB", (20, 30), "red") for _ in pictures(turns)]
    theirs = processor(text=render(processor.tokenizer, turns, answer=True), images=images or None)["input_ids"][0]
    lengths = picture_lengths(processor, [image.size for image in images])
    assert encode_prompt(processor.tokenizer, turns, lengths) == list(theirs)
