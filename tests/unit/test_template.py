"""Prompts and label masks: what is trained is exactly what the assistant says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlmflow.data.records import Turn
from vlmflow.errors import UserError
from vlmflow.models.directory import load_processor, picture_tokens
from vlmflow.models.template import IGNORED, chat_template, encode, encode_prompt, render

CONVERSATIONS = {
    "single": [Turn("user", "<image>\nWhat is this?"), Turn("assistant", "A bus.")],
    "multi-turn": [
        Turn("user", "<image>\nWhat is this?"), Turn("assistant", "A bus."),
        Turn("user", "Which colour?"), Turn("assistant", "Red and white."),
    ],
    "multi-image": [Turn("user", "<image><image>\nWhich is older?"), Turn("assistant", "The first.")],
    "system": [Turn("system", "Be brief."), Turn("user", "Hi"), Turn("assistant", "Hello.")],
    "unicode": [Turn("user", "<image>\n这是什么？🍜"), Turn("assistant", "肠粉，不是叉烧。")],
}  # fmt: skip


@pytest.fixture(scope="module")
def processor(tiny_model: Path) -> Any:
    return load_processor(tiny_model)


def pictures(turns: list[Turn]) -> int:
    return sum(turn.text.count("<image>") for turn in turns)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_supervised_text_is_the_answers_with_their_end(processor: Any, name: str) -> None:
    turns = CONVERSATIONS[name]
    encoded = encode(processor.tokenizer, turns, [4] * pictures(turns))
    supervised = [label for label in encoded.labels if label != IGNORED]
    expected = "".join(turn.text + "<|im_end|>" for turn in turns if turn.role == "assistant")
    assert processor.tokenizer.decode(supervised) == expected
    assert all(label in (token, IGNORED) for token, label in zip(encoded.input_ids, encoded.labels, strict=True))


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_the_prompt_of_the_last_answer_begins_the_training_sequence(processor: Any, name: str) -> None:
    turns = CONVERSATIONS[name]
    counts = [4] * pictures(turns)
    prompt = encode_prompt(processor.tokenizer, turns[:-1], counts)
    assert encode(processor.tokenizer, turns, counts).input_ids[: len(prompt)] == prompt


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_token_ids_equal_those_of_the_processor(processor: Any, name: str) -> None:
    """What transformers users get from the saved directory is what we trained on."""
    turns = CONVERSATIONS[name][:-1]
    images = [Image.new("RGB", (20, 30), "red")] * pictures(turns)
    text = render(processor.tokenizer, turns, answer=True)
    theirs = processor(text=text, images=images or None, add_special_tokens=False)["input_ids"][0]
    assert encode_prompt(processor.tokenizer, turns, [picture_tokens(processor)] * len(images)) == list(theirs)


def test_content_in_parts_renders_like_text(processor: Any) -> None:
    """Servers send pictures as typed parts; the same prompt must come out."""
    parts = [{"type": "image"}, {"type": "text", "text": "\nWhat is this?"}]
    rendered = processor.tokenizer.apply_chat_template(
        [{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True
    )
    assert rendered == render(processor.tokenizer, [Turn("user", "<image>\nWhat is this?")], answer=True)


def test_chatml_is_golden(processor: Any) -> None:
    rendered = render(processor.tokenizer, CONVERSATIONS["multi-turn"], answer=False)
    assert rendered == (
        "<|im_start|>user\n<image>\nWhat is this?<|im_end|>\n<|im_start|>assistant\nA bus.<|im_end|>\n"
        "<|im_start|>user\nWhich colour?<|im_end|>\n<|im_start|>assistant\nRed and white.<|im_end|>\n"
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("internlm2-chat", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
        (
            "internvl2",
            "<|im_start|>system\n你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, "
            "是一个有用无害的人工智能助手。<|im_end|><|im_start|>user\nHi<|im_end|><|im_start|>assistant\n",
        ),
        (
            "internvl2-xtuner",
            "<|im_start|>system\nYou are an AI assistant whose name is InternLM (书生·浦语).<|im_end|>"
            "<|im_start|>user\nHi<|im_end|><|im_start|>assistant\n",
        ),
    ],
)
def test_published_templates_are_golden(processor: Any, name: str, expected: str) -> None:
    rendered = processor.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}],
        chat_template=chat_template(name), tokenize=False, add_generation_prompt=True, bos_token="<s>",
    )  # fmt: skip
    assert rendered == "<s>" + expected or rendered == processor.tokenizer.bos_token + expected


def test_pictures_and_placeholders_must_match(processor: Any) -> None:
    with pytest.raises(UserError, match="1 <image> for 2 picture"):
        encode(processor.tokenizer, CONVERSATIONS["single"], [4, 4])
