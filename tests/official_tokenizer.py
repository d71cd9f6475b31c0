"""Byte-level tokenizers with the control tokens of published models, in their order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

PICTURE_TOKENS = ["<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"]


class Tokens(NamedTuple):
    """Control tokens before and after the words; which of them are BOS (None: no text begins with it), EOS, padding."""

    first: str
    last: str
    bos: str | None
    eos: str
    pad: str
    kind: str


_TOKENS = {
    "internlm2": Tokens(
        "<unk> <s> </s>",
        "<|plugin|> <|interpreter|> <|action_end|> <|action_start|> <|im_end|> <|im_start|>",
        "<s>",
        "</s>",
        "</s>",
        "InternLM2Tokenizer",
    ),
    "qwen2": Tokens("", "<|endoftext|> <|im_start|> <|im_end|>", None, "<|im_end|>", "<|endoftext|>", "Qwen2Tokenizer"),
    "phi3": Tokens(
        "<unk> <s> </s>",
        "<|endoftext|> <|assistant|> <|placeholder1|> <|placeholder2|> <|placeholder3|> <|placeholder4|> <|system|>"
        " <|end|> <|placeholder5|> <|placeholder6|> <|user|>",
        "<s>",
        "<|endoftext|>",
        "<|endoftext|>",
        "LlamaTokenizer",
    ),
    "vicuna": Tokens("<unk> <s> </s>", "", "<s>", "</s>", "<unk>", "LlamaTokenizer"),
    "yi": Tokens(
        "<unk> <|startoftext|> <|endoftext|> <|im_start|> <|im_end|>",
        "",
        None,
        "<|im_end|>",
        "<unk>",
        "LlamaTokenizer",
    ),
    "llama3": Tokens(
        "",
        "<|begin_of_text|> <|end_of_text|> <|im_start|> <|im_end|> <|start_header_id|> <|end_header_id|> <|eot_id|>",
        "<|begin_of_text|>",
        "<|im_end|>",
        "<|end_of_text|>",
        "PreTrainedTokenizerFast",
    ),
}
_LLAMAS = {10_000.0: "vicuna", 5_000_000.0: "yi", 500_000.0: "llama3"}


def write_tokenizer(folder: Path, model_type: str, rope_theta: float, pictures: bool) -> dict[str, int]:
    """Write the tokenizer files of a language model; returns vocabulary size and special ids for its config.json.

    ``pictures``: with the tokens that InternVL adds. Words are the 256 bytes; Vicuna, Yi and Llama 3, all Llama by
    name, are told apart by their ``rope_theta``.
    """
    tokens = _TOKENS[_LLAMAS[rope_theta] if model_type == "llama" else model_type]
    first, last = tokens.first.split(), [*tokens.last.split(), *(PICTURE_TOKENS if pictures else ())]
    words = [*first, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(words)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([AddedToken(token, special=True, normalized=False) for token in [*first, *last]])
    if tokens.bos is not None:
        known = [(tokens.bos, backend.token_to_id(tokens.bos))]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{tokens.bos} $A", pair=f"{tokens.bos} $A {tokens.bos} $B:1", special_tokens=known
        )
    backend.save(str(folder / "tokenizer.json"))
    ids: dict[str, int] = {
        token: index for token in [*first, *last] if (index := backend.token_to_id(token)) is not None
    }
    named = {"eos_token": tokens.eos, "pad_token": tokens.pad}
    if first[:1] == ["<unk>"]:
        named["unk_token"] = "<unk>"
    bos = tokens.bos or next(token for token in ("<|startoftext|>", "<|endoftext|>") if token in ids)
    if tokens.kind != "Qwen2Tokenizer":
        named["bos_token"] = bos
    entry = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    config: dict[str, Any] = {
        **named,
        "added_tokens_decoder": {str(index): {"content": token, **entry} for token, index in ids.items()},
        "additional_special_tokens": last,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 8192,
        "tokenizer_class": tokens.kind,
    }
    if model_type == "internlm2":
        config["auto_map"] = {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]}
    added = {token: index for token, index in ids.items() if token in last}
    for name, content in (
        ("tokenizer_config.json", config),
        ("special_tokens_map.json", {**named, "additional_special_tokens": last}),
        ("added_tokens.json", added),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    special = {"bos_token_id": ids[bos], "eos_token_id": ids[tokens.eos], "pad_token_id": ids[tokens.pad]}
    return {"vocab_size": backend.get_vocab_size(), **special}
