"""Prompt templates are, character by character, those of the published models."""

from __future__ import annotations

from typing import Any

import jinja2
import pytest
from test_template_support import CONTROL, make_tokenizer

from vlmflow.data.records import Turn
from vlmflow.errors import UserError
from vlmflow.models.template import chat_template, template_names
from vlmflow.models.template_spans import render

INTERNVL2 = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
INTERNVL15 = "You are an AI assistant whose name is InternLM (书生·浦语)."
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
TURNS = [Turn("user", "Hi"), Turn("assistant", "Hello."), Turn("user", "Who?")]
GOLDEN = {
    "internvl2": f"<s><|im_start|>system\n{INTERNVL2}<|im_end|><|im_start|>user\nHi<|im_end|><|im_start|>assistant\n"
    "Hello.<|im_end|><|im_start|>user\nWho?<|im_end|><|im_start|>assistant\n",
    "internvl2-chatml": f"<s><|im_start|>system\n{INTERNVL2}<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n",
    "internvl-v1.5": f"<s><|im_start|>system\n{INTERNVL15}<|im_end|><|im_start|>user\nHi<|im_end|>"
    "<|im_start|>assistant\nHello.<|im_end|><|im_start|>user\nWho?<|im_end|><|im_start|>assistant\n",
    "internvl2-xtuner": f"<s><|im_start|>system\n{INTERNVL15}<|im_end|><|im_start|>user\nHi<|im_end|>"
    "<|im_start|>assistant\nHello.<|im_end|><|im_start|>user\nWho?<|im_end|><|im_start|>assistant\n",
    "hermes-2": f"<|im_start|>system\n{INTERNVL2}<|im_end|><|im_start|>user\nHi<|im_end|><|im_start|>assistant\n"
    "Hello.<|im_end|><|im_start|>user\nWho?<|im_end|><|im_start|>assistant\n",
    "phi3-chat": f"<s><|system|>\n{INTERNVL2}<|end|><|user|>\nHi<|end|><|assistant|>\n"
    "Hello.<|end|><|user|>\nWho?<|end|><|assistant|>\n",
    "phi3-chat-v1.5": "<s><|system|>\nYou are an AI assistant whose name is Phi-3.<|end|><|user|>\nHi<|end|>"
    "<|assistant|>\nHello.<|end|><|user|>\nWho?<|end|><|assistant|>\n",
    "chatml": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
    "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n",
    "internlm2-chat": "<s><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
    "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n",
    "llama3": "<s><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nWho?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "phi3": "<s><|user|>\nHi<|end|>\n<|assistant|>\nHello.<|end|>\n<|user|>\nWho?<|end|>\n<|assistant|>\n",
    "vicuna": f"<s>{VICUNA} USER: Hi ASSISTANT: Hello.</s>USER: Who? ASSISTANT:",
    "plain": "<s>Hello.\n",
}
SYSTEM = {
    "internvl2": "<s><|im_start|>system\n{}<|im_end|><|im_start|>user\nHi<|im_end|><|im_start|>assistant\n",
    "internvl2-chatml": "<s><|im_start|>system\n{}<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "internvl-v1.5": "<s><|im_start|>system\n{}<|im_end|><|im_start|>user\nHi<|im_end|><|im_start|>assistant\n",
    "internvl2-xtuner": "<s><|im_start|>system\n{}<|im_end|><|im_start|>user\nHi<|im_end|><|im_start|>assistant\n",
    "hermes-2": "<|im_start|>system\n{}<|im_end|><|im_start|>user\nHi<|im_end|><|im_start|>assistant\n",
    "phi3-chat": "<s><|system|>\n{}<|end|><|user|>\nHi<|end|><|assistant|>\n",
    "phi3-chat-v1.5": "<s><|system|>\n{}<|end|><|user|>\nHi<|end|><|assistant|>\n",
    "chatml": "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "internlm2-chat": "<s><|im_start|>system\n{}<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|><|start_header_id|>user<|end_header_id|>"
    "\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "phi3": "<s><|system|>\n{}<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\n",
    "vicuna": "<s>{} USER: Hi ASSISTANT:",
    "plain": "<s>",
}
WITHOUT_SYSTEM = {
    "internlm2-chat": "<s><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "llama3": "<s><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "phi3": "<s><|user|>\nHi<|end|>\n<|assistant|>\n",
    "vicuna": "<s>USER: Hi ASSISTANT:",
}
"""What XTuner and LLaVA leave out when the system text is empty; the others write an empty block."""


def test_every_template_is_tested() -> None:
    assert template_names() == sorted(GOLDEN) == sorted(SYSTEM) == sorted(CONTROL)


@pytest.mark.parametrize("name", GOLDEN)
def test_several_turns(name: str) -> None:
    assert render(make_tokenizer(name), TURNS, answer=True) == GOLDEN[name]


@pytest.mark.parametrize("name", GOLDEN)
def test_a_conversation_that_ends_with_an_answer_asks_for_none(name: str) -> None:
    tokenizer = make_tokenizer(name)
    whole = render(tokenizer, TURNS[:2], answer=False)
    assert render(tokenizer, TURNS, answer=False).startswith(whole)
    assert whole.rstrip().endswith((*CONTROL[name], "</s>", "Hello."))


@pytest.mark.parametrize("name", SYSTEM)
def test_a_system_turn_replaces_the_default(name: str) -> None:
    turns = [Turn("system", "Be brief."), Turn("user", "Hi")]
    assert render(make_tokenizer(name), turns, answer=True) == SYSTEM[name].format("Be brief.")


@pytest.mark.parametrize("name", SYSTEM)
def test_an_empty_system_turn_is_what_the_published_code_makes_of_it(name: str) -> None:
    turns = [Turn("system", ""), Turn("user", "Hi")]
    expected = WITHOUT_SYSTEM.get(name, SYSTEM[name].format(""))
    assert render(make_tokenizer(name), turns, answer=True) == expected


@pytest.mark.parametrize("name", GOLDEN)
def test_a_tokenizer_without_bos_gets_none(name: str) -> None:
    assert render(make_tokenizer(name, bos=None), TURNS, answer=True) == GOLDEN[name].removeprefix("<s>")


def parts(tokenizer: Any, content: list[dict[str, Any]]) -> str:
    messages = [{"role": "user", "content": content}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


@pytest.mark.parametrize("family", ["llava", "internvl"])
@pytest.mark.parametrize("name", sorted(set(GOLDEN) - {"plain"}))
def test_content_in_parts_is_the_published_text(name: str, family: str) -> None:
    """Each picture on a line of its own, as LMDeploy, llava-hf's and InternVL's own templates write it."""
    tokenizer = make_tokenizer(name, family)
    content = [{"type": "image"}, {"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "Older?"}]
    expected = render(tokenizer, [Turn("user", "<image>\n<image>\nOlder?")], answer=True)
    assert parts(tokenizer, content) == expected
    assert ("<IMG_CONTEXT>\n<IMG_CONTEXT>\nOlder?" if family == "internvl" else "<image>\n<image>\nOlder?") in expected


def test_a_placeholder_in_a_text_part_keeps_its_place() -> None:
    rendered = parts(make_tokenizer("internvl2", "internvl"), [{"type": "text", "text": "Is <image> older?"}])
    assert "user\nIs <IMG_CONTEXT> older?<|im_end|>" in rendered


def test_other_content_is_refused_rather_than_left_out() -> None:
    with pytest.raises(jinja2.TemplateError, match="audio"):
        parts(make_tokenizer("internvl2", "internvl"), [{"type": "audio", "audio": "x"}])


def test_pretraining_is_pictures_and_captions() -> None:
    turns = [Turn("user", "Describe.\n<image>"), Turn("assistant", "A bus.")]
    assert render(make_tokenizer("plain"), turns, answer=False) == "<s><image>A bus.\n"


def test_unknown_names_and_families_are_refused() -> None:
    with pytest.raises(UserError, match="no prompt template 'chatlm'"):
        chat_template("chatlm")
    with pytest.raises(UserError, match="no prompt template"):
        chat_template("shared.turns")
    with pytest.raises(UserError, match="'plain' is LLaVA's"):
        chat_template("plain", "internvl")


@pytest.mark.parametrize("name", GOLDEN)
def test_a_stored_template_stands_alone(name: str) -> None:
    assert "include" not in chat_template(name)
