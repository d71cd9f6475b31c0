"""Checkpoints that are in transformers' own layout already: checked, and copied."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from vlmflow.convert.layout import OFFICIAL, naming
from vlmflow.convert.tokenizer import check_rows, load_tokenizer
from vlmflow.errors import UserError
from vlmflow.files import MANIFEST, read_json, write_json
from vlmflow.models.directory import write_config
from vlmflow.models.language import own_template
from vlmflow.models.llava_directory import check_layer, write_generation_config
from vlmflow.models.parts import cleaned, expected_of, generation_of, local_config, without_buffers
from vlmflow.models.template import PLACEHOLDER, chat_template, check_template, template_names
from vlmflow.models.template_tokenizer import fit_tokenizer
from vlmflow.weights.checkpoint import Checkpoint
from vlmflow.weights.mapping import Rule, plan
from vlmflow.weights.skeleton import disk_name
from vlmflow.weights.stream import write_tensors

_PICTURES, _OLDER = "processor_config.json", "preprocessor_config.json"
_TEMPLATE = "chat_template.json"
"""Where older releases of transformers keep the prompt template; it would go before chat_template.jinja."""
_COPIED = (".json", ".jinja", ".txt", ".model")
_MADE = (MANIFEST, "provenance.json", _TEMPLATE, _PICTURES, "generation_config.json")
_TOKENIZERS = ("tokenizer.json", "vocab.json", "tokenizer.model")
_VIDEO = "<video>"
"""A token of InternVL's that never reaches the model."""
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
    ``template`` None keeps the prompt template that a model directory of ours names, or what a LLaVA's language model
    was trained with, or else the one that transformers would take. It is then the only one in ``output``.
    """
    config = cleaned(local_config(folder))
    if family == "llava":
        check_layer(config.vision_feature_layer, config.vision_config, "vision_feature_layer", folder / "config.json")
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
    check_rows(tokenizer, text.vocab_size, (), folder, unread=() if family == "llava" else (_VIDEO,))
    processor = _processor(config, max_tiles, folder)
    with naming(folder):
        name = _set_template(folder, family, config, tokenizer, template)
        expected = expected_of(config, folder / "config.json")
        write_generation_config(tokenizer, generation_of(folder), output)
        kinds = write_tensors(tensors, pieces, output, expected, dtype=dtype)
    _copy_files(folder, output)
    if dtype is not None:
        for part in (config, text, config.vision_config):
            part.dtype = dtype
    if family == "llava":
        config.pad_token_id = config.image_token_index
    write_config(config, output)
    tokenizer.save_pretrained(output)
    write_json(output / _PICTURES, processor)
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


def _copy_files(folder: Path, output: Path) -> None:
    """Copy the small files of a model directory, and the official ones that are kept in it."""
    copied = [file for file in folder.iterdir() if file.suffix in _COPIED and file.name not in _MADE]
    merged = "image_processor" not in _object(folder / _PICTURES)
    for file in copied:
        left_out = file.name.startswith(".") or file.name.endswith(".index.json") or (merged and file.name == _OLDER)
        if file.is_file() and not left_out:
            shutil.copyfile(file, output / file.name)
    for file in (folder / OFFICIAL).iterdir() if (folder / OFFICIAL).is_dir() else ():
        (output / OFFICIAL).mkdir(exist_ok=True)
        if file.is_file():
            shutil.copyfile(file, output / OFFICIAL / file.name)


def _tokenizer(folder: Path, family: str) -> Any:
    """The tokenizer; an InternVL's with the names that its picture tokens have in transformers."""
    if family == "llava":
        return load_tokenizer(folder)
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise UserError(f"missing tokenizer: there is no {', '.join(_TOKENIZERS)}", file=folder)
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare ones
        raise UserError(f"broken tokenizer: {' '.join(str(error).split())[:300]}", file=folder) from None


def _set_template(folder: Path, family: str, config: Any, tokenizer: Any, template: str | None) -> str:
    """Give the tokenizer the named prompt template, or the checkpoint's own; return its name."""
    if family == "llava" and tokenizer.convert_tokens_to_ids(PLACEHOLDER) != config.image_token_index:
        raise UserError(
            f"wrong tokenizer: {PLACEHOLDER} is not token {config.image_token_index} of it",
            "tokenizer and config.json are of different models",
        )
    stored = _stored_template(folder, tokenizer)
    kept = _object(folder / MANIFEST).get("template")
    if template is None and kept in template_names():
        template = str(kept)
    if template is None and family == "llava":
        try:
            template = own_template(config.text_config.model_type, config.text_config, tokenizer)
        except UserError:
            if not stored:
                raise
    tokenizer.chat_template = chat_template(template, family) if template else stored
    if not tokenizer.chat_template:
        raise UserError(
            "unknown prompt template: the checkpoint has none",
            f"name the `template`: {', '.join(template_names())}",
            field="template",
        )
    fit_tokenizer(tokenizer)
    check_template(tokenizer)
    return template or "the checkpoint's own"


def _stored_template(folder: Path, tokenizer: Any) -> str | None:
    """The prompt template that transformers' processor would take; it looks into these files in this order."""
    jinja = folder / "chat_template.jinja"
    for name in (_PICTURES, _TEMPLATE):
        found = _object(folder / name).get("chat_template")
        if found is not None:
            return _default(found)
    return jinja.read_text(encoding="utf-8") if jinja.is_file() else _default(tokenizer.chat_template)


def _default(templates: Any) -> str | None:
    """The one of several named templates that is used where none is named."""
    found = templates.get("default") if isinstance(templates, dict) else templates
    return found if isinstance(found, str) else None


def _object(file: Path) -> dict[str, Any]:
    """The content of a JSON file, empty if it is not there or holds something else."""
    content = read_json(file) if file.is_file() else {}
    return content if isinstance(content, dict) else {}


def _processor(config: Any, max_tiles: int | None, folder: Path) -> dict[str, Any]:
    """Content for processor_config.json, with what older releases keep in a second file, and the tiles of a picture."""
    content = _object(folder / _PICTURES)
    content.pop("chat_template", None)
    if "image_processor" not in content:
        if not (folder / _OLDER).is_file():
            raise UserError(f"missing file: neither {_PICTURES} nor {_OLDER}", "get the whole directory", file=folder)
        content["image_processor"] = read_json(folder / _OLDER)
    pictures = content["image_processor"]
    if not isinstance(pictures, dict):
        raise UserError("broken processor: its image_processor is no object", file=folder / _PICTURES)
    pictures.pop("chat_template", None)
    if config.model_type == "internvl":
        content.setdefault("processor_class", "InternVLProcessor")
        content.setdefault("image_seq_length", config.image_seq_length)
        content.setdefault("video_processor", {**pictures, "video_processor_type": "InternVLVideoProcessor"})
        if max_tiles is not None:
            pictures["max_patches"] = max_tiles
    else:
        tower = config.vision_config
        content.setdefault("processor_class", "LlavaProcessor")
        content.setdefault("patch_size", tower.patch_size)
        content.setdefault("vision_feature_select_strategy", config.vision_feature_select_strategy)
        content.setdefault("num_additional_image_tokens", int(tower.model_type != "siglip_vision_model"))
    return content


def _causal(model_type: str, folder: Path) -> str:
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UserError(f"no language model of type '{model_type}'", file=folder / "config.json")
    return str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type])
