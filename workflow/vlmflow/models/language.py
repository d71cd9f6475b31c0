"""The language model that a LLaVA is assembled from, with its tokenizer, unread."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from vlmflow.convert import internlm2
from vlmflow.convert.layout import checking, naming
from vlmflow.convert.tokenizer import load_tokenizer
from vlmflow.errors import UserError
from vlmflow.models.gguf import load_gguf
from vlmflow.models.llava_directory import HEAD, TABLE, source_of
from vlmflow.models.parts import (
    Chosen,
    cleaned,
    config_of,
    generation_of,
    local_config,
    refuse_quantised,
    without_buffers,
)
from vlmflow.models.template import template_names
from vlmflow.weights.checkpoint import Checkpoint
from vlmflow.weights.kinds import State, Tensors
from vlmflow.weights.mapping import Rule

_VICUNA_WORDS = 32_000
_SAME = Rule(("**",), ("**",))


class Language(NamedTuple):
    """A causal language model."""

    config: Any
    """As transformers computes it; InternLM2 is a Llama."""
    tensors: Tensors
    rules: list[Rule]
    """From its tensors to those of transformers' class (``model.embed_tokens.weight``)."""
    tokenizer: Any
    generation: dict[str, Any]
    """Content of generation_config.json."""
    model_type: str
    """In its own config.json."""


def language_part(path: Path) -> Language:
    """The language model of a GGUF file (held in memory), or of a folder as it is published."""
    if path.suffix == ".gguf":
        model, tokenizer = load_gguf(path)
        state = model.state_dict()
        if model.config.tie_word_embeddings:
            state.pop(HEAD, None)
        generation = model.generation_config.to_dict()
        cleaned(model.config).architectures = [type(model).__name__]
        return Language(model.config, State(state), [_SAME], tokenizer, generation, model.config.model_type)
    content = config_of(path)
    model_type = str(content.get("model_type"))
    config, rules = language_config(path, content)
    tensors: Tensors = without_buffers(Checkpoint(path))
    head, table = source_of(rules, HEAD), source_of(rules, TABLE)
    if config.tie_word_embeddings and head in tensors.kinds:
        if torch.equal(tensors.read(head), tensors.read(table)):
            tensors = Chosen(tensors, lambda name: name != head)
        else:  # stored apart, so it counts whatever the configuration says
            config.tie_word_embeddings = False
    return Language(config, tensors, rules, load_tokenizer(path), generation_of(path), model_type)


def language_config(path: Path, content: dict[str, Any]) -> tuple[Any, list[Rule]]:
    """Configuration and rules of the language model whose config.json in ``path`` holds ``content``."""
    if content.get("model_type") == "internlm2":
        refuse_quantised(content, path / "config.json")
        with checking("broken configuration", path / "config.json"), naming(path / "config.json"):
            config: Any = internlm2.llama_config(content)
            rules = internlm2.rules_of(content)
    else:
        config, rules = local_config(path), [_SAME]
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UserError(f"wrong part: a model of type '{config.model_type}' is no language model", file=path)
    config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]]
    return cleaned(config), rules


def own_template(model_type: str, config: Any, tokenizer: Any) -> str:
    """The prompt template that a language model was trained with; :class:`UserError` naming all if that is unclear."""
    vocabulary = tokenizer.get_vocab()
    names = {"internlm2": "internlm2-chat", "qwen2": "chatml", "phi3": "phi3"}
    if model_type in names:
        return names[model_type]
    if model_type == "llama" and "<|start_header_id|>" in vocabulary:
        return "llama3"
    if model_type == "llama" and _VICUNA_WORDS in (config.vocab_size, tokenizer.vocab_size):
        return "vicuna"
    raise UserError(
        f"unknown prompt template: a '{model_type}' with {config.vocab_size} tokens can have been trained with any",
        f"name the `template`: {', '.join(template_names())}",
        field="template",
    )
