"""Checkpoints that are in transformers' own layout already: checked, and copied."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from vlmflow.convert.tokenizer import load_tokenizer
from vlmflow.errors import UserError
from vlmflow.files import MANIFEST, read_json, write_json
from vlmflow.models.directory import copy_side_files
from vlmflow.models.language import own_template
from vlmflow.models.llava_directory import write_config, write_generation_config
from vlmflow.models.parts import cleaned, generation_of, local_config, without_buffers
from vlmflow.models.template import PLACEHOLDER, chat_template, check_template, template_names
from vlmflow.models.template_tokenizer import fit_tokenizer
from vlmflow.weights.checkpoint import Checkpoint
from vlmflow.weights.mapping import Rule, plan
from vlmflow.weights.skeleton import disk_name, expected_tensors
from vlmflow.weights.stream import write_tensors

_WEIGHTS = (".bin", ".bin.index.json", ".pt", ".pth")
_PICTURES = "processor_config.json"
_HEAD, _TABLE = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"


def is_native(content: Mapping[str, Any], family: str) -> bool:
    """Whether a config.json is of transformers' own class of a family; official LLaVAs use its name too."""
    return content.get("model_type") == family and isinstance(content.get("text_config"), dict)


def copy_native(
    folder: Path,
    output: Path,
    family: str,
    *,
    template: str | None,
    max_tiles: int | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, Any]:
    """Write the model directory of one in transformers' layout into the empty directory ``output``; return facts.

    Files are copied; weights get the names that LMDeploy reads too, and are checked against the configuration.
    ``template`` None keeps the prompt template that a model directory of ours names, an InternVL's own, or takes what
    a LLaVA's language model was trained with.
    """
    config = cleaned(local_config(folder))
    text = config.text_config
    if not text.architectures:
        text.architectures = [_causal(text.model_type, folder)]
    config.tie_word_embeddings = text.tie_word_embeddings
    tensors = without_buffers(Checkpoint(folder))
    rules = native_rules(config)
    pieces = plan(rules, tensors.kinds, folder)
    stored = {target: piece.sources[0] for piece in pieces for target in piece.targets}
    if config.tie_word_embeddings and {_HEAD, _TABLE} <= stored.keys():
        if torch.equal(*(tensors.read(stored[name]) for name in (_HEAD, _TABLE))):
            pieces = [piece for piece in pieces if piece.targets != (_HEAD,)]
        else:  # stored apart, so it counts whatever the configuration says
            config.tie_word_embeddings = text.tie_word_embeddings = False
    tokenizer = _tokenizer(folder, family)
    name = _set_template(folder, family, config, tokenizer, template)
    kinds = write_tensors(tensors, pieces, output, expected_tensors(config), dtype=dtype)
    copy_side_files(folder, output)
    for file in [file for file in output.iterdir() if file.name.endswith(_WEIGHTS)]:
        file.unlink()
    if dtype is not None:
        for part in (config, text, config.vision_config):
            part.dtype = dtype
    if family == "llava":
        config.pad_token_id = config.image_token_index
    write_config(config, output)
    tokenizer.save_pretrained(output)
    write_generation_config(tokenizer, generation_of(folder), output)
    _write_processor(config, max_tiles, output)
    return {"template": name, "tensors": len(kinds), "bytes": sum(kind.nbytes for kind in kinds.values())}


def native_rules(config: Any) -> list[Rule]:
    """From the names that releases of transformers have written to those that LMDeploy reads too."""
    tower = disk_name("model.vision_tower.", config)
    return [
        Rule(("lm_head.**",), ("language_model.lm_head.**",)),
        Rule(("model.language_model.**",), ("language_model.model.**",)),
        Rule(("model.multi_modal_projector.**",), ("multi_modal_projector.**",)),
        *(
            Rule((f"{start}vision_tower.{inner}**",), (f"{tower}**",))
            for start in ("model.", "")
            for inner in ("vision_model.", "")
        ),
        Rule(("language_model.**",), ("language_model.**",)),
        Rule(("multi_modal_projector.**",), ("multi_modal_projector.**",)),
    ]


def _tokenizer(folder: Path, family: str) -> Any:
    """The tokenizer; an InternVL's with the names that its picture tokens have in transformers."""
    if family == "llava":
        return load_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _set_template(folder: Path, family: str, config: Any, tokenizer: Any, template: str | None) -> str:
    """Give the tokenizer the named prompt template, or the checkpoint's own; return its name."""
    if family == "llava" and tokenizer.convert_tokens_to_ids(PLACEHOLDER) != config.image_token_index:
        raise UserError(
            f"wrong tokenizer: {PLACEHOLDER} is not token {config.image_token_index} of it",
            "tokenizer and config.json are of different models",
            file=folder,
        )
    if template is None and (folder / MANIFEST).is_file():
        template = read_json(folder / MANIFEST).get("template")
    if template is None and family == "llava":
        template = own_template(config.text_config.model_type, config.text_config, tokenizer)
    if template in template_names():
        tokenizer.chat_template = chat_template(str(template), family)
    elif not tokenizer.chat_template:
        raise UserError(
            "unknown prompt template: the checkpoint has none",
            f"name the `template`: {', '.join(template_names())}",
            file=folder,
            field="template",
        )
    fit_tokenizer(tokenizer)
    check_template(tokenizer)
    return template or "the checkpoint's own"


def _write_processor(config: Any, max_tiles: int | None, output: Path) -> None:
    """Bring what older releases keep in two files into processor_config.json; set the tiles of a picture."""
    file, older = output / _PICTURES, output / "preprocessor_config.json"
    content: dict[str, Any] = read_json(file) if file.is_file() else {}
    if "image_processor" not in content:
        if not older.is_file():
            raise UserError(
                "missing file: neither processor_config.json nor preprocessor_config.json", "get the whole directory"
            )
        content["image_processor"] = read_json(older)
        older.unlink()
    if config.model_type == "internvl":
        content.setdefault("processor_class", "InternVLProcessor")
        content.setdefault("image_seq_length", config.image_seq_length)
        pictures = content["image_processor"]
        content.setdefault("video_processor", {**pictures, "video_processor_type": "InternVLVideoProcessor"})
        if max_tiles is not None:
            pictures["max_patches"] = max_tiles
    else:
        tower = config.vision_config
        content.setdefault("processor_class", "LlavaProcessor")
        content.setdefault("patch_size", tower.patch_size)
        content.setdefault("vision_feature_select_strategy", config.vision_feature_select_strategy)
        content.setdefault("num_additional_image_tokens", int(tower.model_type != "siglip_vision_model"))
    write_json(file, content)


def _causal(model_type: str, folder: Path) -> str:
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UserError(f"no language model of type '{model_type}'", file=folder / "config.json")
    return str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type])
