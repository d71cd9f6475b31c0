"""What a tokenizer needs beside its prompt template: no BOS of its own, a padding token, the tokens that end a turn."""

from __future__ import annotations

from typing import Any

from tokenizers.pre_tokenizers import Metaspace

from vlmflow.data.records import Turn
from vlmflow.models.template import IGNORED, PLACEHOLDER, encode, picture_token, special_tokens
from vlmflow.models.template_spans import render

_TURNS = [Turn("system", "x"), Turn("user", "x"), Turn("assistant", "x"), Turn("user", "x"), Turn("assistant", "x")]


def fit_tokenizer(tokenizer: Any) -> None:
    """Leave BOS and EOS to the template, and choose a padding token if there is none; the vocabulary does not grow.

    To be called when ``chat_template`` is set and before the tokenizer is saved. LMDeploy and transformers' processors
    tokenize with special tokens, training without: only a tokenizer that adds none gives the same ids everywhere.
    LMDeploy also tokenizes the texts between LLaVA's pictures one by one, so that each must get the space that some
    sentencepiece tokenizers put before the first alone.
    """
    tokenizer.add_bos_token = False
    tokenizer.add_eos_token = False
    backend = tokenizer.backend_tokenizer
    spaces = backend.pre_tokenizer
    if isinstance(spaces, Metaspace) and spaces.prepend_scheme == "first" and picture_token(tokenizer) == PLACEHOLDER:
        backend.pre_tokenizer = Metaspace(spaces.replacement, "always", spaces.split)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = _padding(tokenizer)


def end_of_turn(tokenizer: Any) -> list[int]:
    """The token ids that generation stops at: the one that training puts after an answer, then the tokenizer's EOS."""
    trained = [label for label in encode(tokenizer, _TURNS, []).labels if label != IGNORED]
    return list(dict.fromkeys(token for token in (trained[-1], tokenizer.eos_token_id) if token is not None))


def _padding(tokenizer: Any) -> str:
    """The unknown token, EOS or another control token that no prompt contains; EOS if there is none.

    LMDeploy's LLaVA marks the places of pictures with the padding token, which therefore must not be in the text.
    """
    text = render(tokenizer, _TURNS, answer=True)
    pictures = {
        picture_token(tokenizer),
        *(getattr(tokenizer, f"{side}_image_token", None) for side in ("start", "end")),
    }
    spare = special_tokens(tokenizer) - {tokenizer.bos_token} - pictures
    candidates = [tokenizer.unk_token, tokenizer.eos_token, *sorted(spare, key=tokenizer.convert_tokens_to_ids)]
    chosen: str = next((token for token in candidates if token and token not in text), tokenizer.eos_token)
    return chosen
