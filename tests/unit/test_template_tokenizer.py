"""Tokenizers of model directories: BOS once, an end that generation stops at, padding that no text contains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_template_support import CONTROL, byte_level, make_tokenizer, sentencepiece, stored
from tokenizers import processors

from vlmflow.data.records import Turn
from vlmflow.errors import UserError
from vlmflow.models.template import chat_template, check_template, encode_prompt
from vlmflow.models.template_spans import render
from vlmflow.models.template_tokenizer import end_of_turn, fit_tokenizer

HI = [Turn("user", "Hi")]
ENDS = {"vicuna": ["</s>"], "llama3": ["<|eot_id|>", "</s>"], "plain": ["Ċ", "</s>"]}


def end_of(name: str) -> list[str]:
    return ENDS.get(name, ["<|end|>" if "phi3" in name else "<|im_end|>", "</s>"])


@pytest.mark.parametrize("name", CONTROL)
def test_bos_stands_once_at_the_beginning(name: str, tmp_path: Path) -> None:
    published = make_tokenizer(name)
    assert published("x")["input_ids"][0] == published.bos_token_id
    tokenizer = stored(published, tmp_path)
    ids = tokenizer(render(tokenizer, HI, answer=True))["input_ids"]
    assert ids == encode_prompt(tokenizer, HI, [])
    expected = [] if name in ("chatml", "hermes-2") else [0]
    assert [index for index, token in enumerate(ids) if token == tokenizer.bos_token_id] == expected


@pytest.mark.parametrize("name", CONTROL)
def test_generation_stops_where_training_ends_an_answer(name: str) -> None:
    tokenizer = make_tokenizer(name)
    assert tokenizer.convert_ids_to_tokens(end_of_turn(tokenizer)) == end_of(name)


@pytest.mark.parametrize(
    ("kind", "family"), [(byte_level, "llava"), (sentencepiece, "llava"), (byte_level, "internvl")]
)
@pytest.mark.parametrize("name", sorted(set(CONTROL) - {"plain"}))
def test_a_stored_tokenizer_fits_its_template(name: str, family: str, kind: Any, tmp_path: Path) -> None:
    check_template(stored(make_tokenizer(name, family, kind()), tmp_path))


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("vicuna", sentencepiece, "<unk>"),
        ("internlm2-chat", sentencepiece, "<unk>"),
        ("internlm2-chat", byte_level, "</s>"),
        ("llama3", byte_level, "</s>"),
    ],
)
def test_padding_is_a_token_that_prompts_do_not_contain(name: str, kind: Any, expected: str) -> None:
    tokenizer = make_tokenizer(name, backend=kind())
    size = len(tokenizer)
    fit_tokenizer(tokenizer)
    assert (tokenizer.pad_token, len(tokenizer)) == (expected, size)
    assert tokenizer.pad_token_id not in encode_prompt(tokenizer, [*HI, Turn("assistant", "x"), *HI], [])


def test_padding_is_no_end_of_turn_while_there_is_another_token() -> None:
    """Llama 3 has no unknown token, and its instruct models end every turn with their EOS."""
    tokenizer = make_tokenizer("llama3", "internvl")
    tokenizer.eos_token = "<|eot_id|>"
    fit_tokenizer(tokenizer)
    assert tokenizer.pad_token not in ("<|eot_id|>", "<s>", "<img>", "</img>", "<IMG_CONTEXT>")


def test_padding_that_a_tokenizer_has_stays() -> None:
    tokenizer = make_tokenizer("vicuna", backend=sentencepiece())
    tokenizer.pad_token = "</s>"
    fit_tokenizer(tokenizer)
    assert tokenizer.pad_token == "</s>"


def test_a_space_before_the_first_text_alone_becomes_one_before_every_text(tmp_path: Path) -> None:
    """LMDeploy tokenizes the texts between pictures one by one."""
    tokenizer = make_tokenizer("vicuna", backend=sentencepiece(every_text=False))
    tokenizer.add_bos_token = False
    with pytest.raises(UserError, match="after a picture differently"):
        check_template(tokenizer)
    check_template(stored(tokenizer, tmp_path))


def test_a_tokenizer_that_adds_bos_or_eos_is_refused() -> None:
    tokenizer = make_tokenizer("internvl2", "internvl")
    with pytest.raises(UserError, match="adds tokens"):
        check_template(tokenizer)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", tokenizer.eos_token_id)]
    )
    with pytest.raises(UserError, match="adds tokens"):
        check_template(tokenizer)
    fit_tokenizer(tokenizer)
    check_template(tokenizer)


def test_bos_that_a_tokenizer_is_told_to_add_is_left_to_the_template(tmp_path: Path) -> None:
    tokenizer = make_tokenizer("vicuna", backend=sentencepiece())
    tokenizer.add_bos_token = True
    check_template(stored(tokenizer, tmp_path))


def test_a_template_of_another_model_is_refused() -> None:
    tokenizer = make_tokenizer("vicuna")
    fit_tokenizer(tokenizer)
    tokenizer.chat_template = chat_template("internvl2")
    with pytest.raises(UserError, match=r"<\|im_end\|> is \d+ tokens, not one"):
        check_template(tokenizer)


def test_a_template_that_does_not_end_answers_is_refused() -> None:
    tokenizer = make_tokenizer("chatml")
    fit_tokenizer(tokenizer)
    tokenizer.chat_template = "{%- for m in messages -%}{{- m.content -}}{%- endfor -%}"
    with pytest.raises(UserError, match="nothing after an answer"):
        check_template(tokenizer)
