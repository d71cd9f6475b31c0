"""Slow tokenizers rebuilt without their code: same ids as sentencepiece and as the files say, or refused."""

from __future__ import annotations

import functools
import io
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoTokenizer

from vlmflow.convert.tokenizer import check_control, check_rows, load_tokenizer
from vlmflow.errors import UserError
from vlmflow.files import write_json, write_text

NAMES = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
TEXT = [
    "The quick brown fox jumps over the lazy dog; then it sleeps, it dreams, it wakes.",
    "你是一个人工智能助手。图片里有什么？图片里有一只猫。",
    "def function(value):\n    return value ** 2  # [1, 2, 3]",
    "русский текст, 日本語です, hello   world, the other the world",
] * 20
PIECES = 470
UNUSED = ("[UNUSED_TOKEN_1]", "[UNUSED_TOKEN_2]")
ADDED = {1: "<s>", 2: "</s>", 3: "<|im_start|>", 4: "<|im_end|>", PIECES: "<img>", PIECES + 1: "</img>"}
ADDED[PIECES + 2] = "<IMG_CONTEXT>"
ENTRY = {"special": True, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}


@functools.cache
def model(prefix: bool, kind: str = "bpe", rule: str = "identity") -> bytes:
    """A small sentencepiece model."""
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT),
        model_writer=buffer,
        model_type=kind,
        vocab_size=PIECES,
        byte_fallback=True,
        add_dummy_prefix=prefix,
        normalization_rule_name=rule,
        remove_extra_whitespaces=False,
        user_defined_symbols=list(UNUSED),
        character_coverage=1.0,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return buffer.getvalue()


def folder_of(path: Path, content: bytes, added: dict[int, str] = ADDED, **config: Any) -> Path:
    """Tokenizer files as InternLM2's Python code saves them."""
    path.mkdir()
    (path / "tokenizer.model").write_bytes(content)
    decoder = {str(index): {"content": token, **ENTRY} for index, token in added.items()}
    named = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    auto_map = {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]}
    content_ = {**named, "added_tokens_decoder": decoder, "auto_map": auto_map, "model_max_length": 8192, **config}
    write_json(path / "tokenizer_config.json", content_)
    write_json(path / "added_tokens.json", {token: index for index, token in added.items() if index >= PIECES})
    write_text(path / "tokenization_internlm2.py", "raise SystemExit('remote code ran')\n")
    return path


def reloaded(tokenizer: Any, path: Path) -> Any:
    """The tokenizer as any engine sees it: saved beside the configuration of an InternVL, and loaded again."""
    tokenizer.save_pretrained(path)
    write_json(path / "config.json", {"model_type": "internvl"})
    return AutoTokenizer.from_pretrained(path, local_files_only=True)


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("legacy", [True, False])
def test_sentencepiece_to_the_letter(prefix: bool, legacy: bool, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "slow", model(prefix), legacy=legacy)
    tokenizer = reloaded(load_tokenizer(folder, NAMES), tmp_path / "fast")
    original = sentencepiece.SentencePieceProcessor(model_proto=model(prefix))
    for text in [*TEXT[:4], "unseen: Ελλάδα 🦊\n", "a\n\n  b\t c", "word"]:
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == original.encode(text), text
        assert tokenizer.decode(original.encode(text)) == text
    assert {index: tokenizer.convert_ids_to_tokens(index) for index in ADDED} == ADDED
    ids = tokenizer("<|im_start|>user\n<img><IMG_CONTEXT></img>", add_special_tokens=False)["input_ids"]
    assert ids[0] == 3 and ids[-3:] == [PIECES, PIECES + 2, PIECES + 1]
    assert (tokenizer.start_image_token_id, tokenizer.context_image_token_id) == (PIECES, PIECES + 2)
    assert (tokenizer.bos_token, tokenizer.pad_token, tokenizer.model_max_length) == ("<s>", "</s>", 8192)


def test_each_text_between_control_tokens_is_one(tmp_path: Path) -> None:
    """As the Python code has it: sentencepiece sees each piece of text by itself, with its own leading space."""
    folder = folder_of(tmp_path / "slow", model(True))
    original = sentencepiece.SentencePieceProcessor(model_proto=model(True))
    ids = load_tokenizer(folder)("the fox<|im_end|>the dog", add_special_tokens=False)["input_ids"]
    assert ids == [*original.encode("the fox"), 4, *original.encode("the dog")]


def test_spaces_that_a_token_swallows(tmp_path: Path) -> None:
    """Phi-3's role tokens have rstrip: the newline after them is not a token."""
    folder = folder_of(tmp_path / "slow", model(False))
    decoder = {str(index): {"content": token, **ENTRY} for index, token in ADDED.items()}
    decoder["4"]["rstrip"] = True
    write_json(folder / "tokenizer_config.json", {"added_tokens_decoder": decoder})
    tokenizer = load_tokenizer(folder)
    assert tokenizer("<|im_end|>\nthe")["input_ids"] == tokenizer("<|im_end|>the")["input_ids"]


@pytest.mark.parametrize(
    ("content", "added", "message"),
    [
        (model(True, "unigram"), ADDED, "not BPE"),
        (model(True, "bpe", "nmt_nfkc"), ADDED, "rebuilt, it makes"),
        (b"\x0anot a model", ADDED, "not a sentencepiece model"),
        (b"", ADDED, "a sentencepiece model without pieces"),
        (model(True), {**ADDED, PIECES + 9: "<box>"}, rf"token <box> must have id {PIECES + 9} but would get"),
        (model(True), {**ADDED, 5: "<s>"}, "has the name of another piece"),
    ],
    ids=["unigram", "normalised", "broken", "empty", "gap", "twice"],
)
def test_refused(content: bytes, added: dict[int, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as raised:
        load_tokenizer(folder_of(tmp_path / "slow", content, added))
    assert str(tmp_path) in str(raised.value)


def test_files_that_disagree(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "slow", model(True))
    write_json(folder / "added_tokens.json", {"<other>": PIECES})
    with pytest.raises(UserError, match=f"id {PIECES} is <other>, but <img>"):
        load_tokenizer(folder)
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="missing tokenizer"):
        load_tokenizer(tmp_path / "none")


def test_tokens_that_the_embeddings_lack(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "slow", model(True))
    tokenizer = load_tokenizer(folder, NAMES)
    check_rows(tokenizer, PIECES + 3, list(NAMES.values()), folder)
    with pytest.raises(UserError, match=f"token <IMG_CONTEXT> has id {PIECES + 2}, the embedding table {PIECES + 2}"):
        check_rows(tokenizer, PIECES + 2, list(NAMES.values()), folder)
    with pytest.raises(UserError, match="no token <quad>"):
        check_rows(tokenizer, PIECES + 3, ["<quad>"], folder)
    with pytest.raises(UserError, match=f"token </img> has id {PIECES + 1}, .* \\(and 1 more\\)"):
        check_rows(tokenizer, PIECES + 1, ["<img>"], folder)
    check_rows(tokenizer, PIECES + 1, ["<img>"], folder, {"</img>", "<IMG_CONTEXT>"})


@pytest.mark.parametrize(
    ("config", "wrong"),
    [
        ({}, None),
        ({"bos_token_id": 1, "eos_token_id": [2, 4]}, None),
        ({"bos_token_id": 300}, "bos_token_id 300"),
        ({"bos_token_id": 1, "eos_token_id": [2, 9999]}, "eos_token_id 9999"),
        ({"eos_token_id": "2"}, "eos_token_id 2"),
    ],
)
def test_control_tokens_of_another_model(config: dict[str, Any], wrong: str | None, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "slow", model(True))
    if wrong is None:
        check_control(load_tokenizer(folder), config, folder)
        return
    with pytest.raises(UserError, match=f"{wrong}, which is no control token"):
        check_control(load_tokenizer(folder), config, folder)


def test_qwen2_from_vocabulary_and_merges(tmp_path: Path) -> None:
    """InternVL2-1B comes without tokenizer.json."""
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(TEXT, vocab_size=400, special_tokens=[])
    trained.save_model(str(tmp_path))
    size = trained.get_vocab_size()
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>"]
    added = {size + index: token for index, token in enumerate(tokens)}
    decoder = {str(index): {"content": token, **ENTRY} for index, token in added.items()}
    write_json(tmp_path / "tokenizer_config.json", {"added_tokens_decoder": decoder, "eos_token": "<|im_end|>"})
    tokenizer = reloaded(load_tokenizer(tmp_path, NAMES), tmp_path / "fast")
    assert tokenizer.convert_ids_to_tokens(list(added)) == tokens
    ids = tokenizer("<|im_start|>the lazy dog, 图片里有 123")["input_ids"]
    assert ids[0] == size + 1 and len(ids) < 24
    assert tokenizer.decode(ids[1:]) == "the lazy dog, 图片里有 123"
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.bos_token is None
