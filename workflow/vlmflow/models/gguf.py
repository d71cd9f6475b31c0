"""Language models in llama.cpp's single-file format, de-quantised to plain weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from vlmflow.convert.layout import checking
from vlmflow.errors import UserError


def load_gguf(path: Path) -> tuple[Any, Any]:
    """Model (float32) and tokenizer of a ``.gguf`` file.

    transformers marks a de-quantised model as quantised, which forbids saving it; the weights are moved into a fresh
    model of the same class.
    """
    if not path.is_file():
        raise UserError("no such file", file=path)
    options = {"gguf_file": path.name, "local_files_only": True}
    with checking("not a GGUF file of a language model", path):
        marked = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **options)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **options)
    config = type(marked.config)(
        **{key: value for key, value in marked.config.to_dict().items() if key != "quantization_config"}
    )
    with torch.device("meta"):
        model = type(marked)(config)
    model.load_state_dict(marked.state_dict(), assign=True)
    model.tie_weights()
    return model, tokenizer
