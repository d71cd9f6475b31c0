"""Small tokenizers with the control tokens of the published models, of each kind that is in use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from vlmflow.models.template import chat_template
from vlmflow.models.template_tokenizer import fit_tokenizer

MARKUP = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
_CHATML = ["<|im_start|>", "<|im_end|>"]
CONTROL = {
    "internvl2": _CHATML, "internvl2-chatml": _CHATML, "internvl2-xtuner": _CHATML, "internvl-v1.5": _CHATML,
    "hermes-2": _CHATML, "chatml": _CHATML, "internlm2-chat": _CHATML,
    "phi3": ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"],
    "phi3-chat": ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"],
    "phi3-chat-v1.5": ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"],
    "llama3": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>"],
    "vicuna": [], "plain": [],
}  # fmt: skip
"""Template -> control tokens beside BOS and EOS."""


_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Llama 3 and (digits apart) Qwen2 cut texts."""


def byte_level() -> Tokenizer:
    """Bytes, and pairs of spaces and newlines: Qwen2, Llama 3."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [("Ċ", "Ċ"), ("Ġ", "Ġ"), ("Ġ", "A"), (".", "Ċ")]
    vocabulary = {token: index for index, token in enumerate([*alphabet, *map("".join, pairs)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    cut = pre_tokenizers.Split(Regex(_PIECES), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def sentencepiece(every_text: bool = True) -> Tokenizer:
    """Characters, bytes for others, a space before every text or before the first: Llama 2, InternLM2, Phi-3."""
    letters = [*map(chr, range(0x21, 0x7F)), "▁", "书", "生"]
    pairs = [("▁", "A"), ("▁", "T"), ("▁", "U"), ("▁", "H")]
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *map("".join, pairs)]
    vocabulary = {name: index for index, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if every_text:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first", False)
    strip = decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    return tokenizer


def make_tokenizer(name: str, family: str = "llava", backend: Tokenizer | None = None, bos: str | None = "<s>") -> Any:
    """A tokenizer with the template ``name`` that adds BOS itself, as the published ones do."""
    backend = backend or byte_level()
    control = [AddedToken(token, special=True, normalized=False, rstrip="phi3" in name) for token in CONTROL[name]]
    backend.add_special_tokens([*(["<s>"] if bos else []), "</s>", *control])
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    markup = MARKUP if family == "internvl" else {"image_token": "<image>"}
    unknown = "<unk>" if backend.token_to_id("<unk>") is not None else None
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token="</s>", unk_token=unknown, extra_special_tokens=markup
    )
    tokenizer.chat_template = chat_template(name, family)
    return tokenizer


def stored(tokenizer: Any, folder: Path) -> Any:
    """The tokenizer as it comes out of a model directory."""
    fit_tokenizer(tokenizer)
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)
