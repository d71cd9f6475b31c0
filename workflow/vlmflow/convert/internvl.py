"""Official InternVL directories (InternVLChatModel) to and from transformers' own InternVL, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import InternVLConfig

from vlmflow.convert import internlm2
from vlmflow.convert.int8 import Int8
from vlmflow.convert.internvl_config import (
    INTERNLM2,
    language_architecture,
    native_config,
    official_dtype,
    tile_range,
)
from vlmflow.convert.internvl_files import generation_config, set_tiles, write_processor
from vlmflow.convert.internvl_template import own_template, prompt_facts
from vlmflow.convert.layout import (
    OFFICIAL,
    checking,
    copy_files,
    facts_of,
    made_shapes,
    main_dtype,
    naming,
    official_source,
    refuse_different,
)
from vlmflow.convert.tokenizer import check_control, check_rows, load_tokenizer
from vlmflow.errors import UserError
from vlmflow.files import read_json, write_json
from vlmflow.models.directory import set_dtype, write_config
from vlmflow.models.template import chat_template, check_template
from vlmflow.models.template_tokenizer import fit_tokenizer
from vlmflow.weights.checkpoint import Checkpoint
from vlmflow.weights.kinds import Kind, Tensors
from vlmflow.weights.mapping import Operation, Rule, inverse, plan
from vlmflow.weights.skeleton import expected_tensors
from vlmflow.weights.stream import MAX_SHARD_BYTES, write_tensors

HEAD = "language_model.lm_head.weight"
_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",  # the processor wants one; published models have none, and none reaches the model
}
_VISION_NAMES = {
    "embeddings.class_embedding": "embeddings.cls_token",
    "embeddings.position_embedding": "embeddings.position_embeddings",
    "embeddings.patch_embedding.**": "embeddings.patch_embeddings.projection.**",
}
_LAYER_NAMES = {
    "attn.proj.weight": "attention.projection_layer.weight",
    "attn.proj.bias": "attention.projection_layer.bias",
    "attn.q_norm.weight": "attention.q_norm.weight",
    "attn.k_norm.weight": "attention.k_norm.weight",
    "norm1.weight": "layernorm_before.weight",
    "norm1.bias": "layernorm_before.bias",
    "norm2.weight": "layernorm_after.weight",
    "norm2.bias": "layernorm_after.bias",
    "ls1": "lambda_1",
    "ls2": "lambda_2",
    "mlp.fc1.weight": "mlp.fc1.weight",
    "mlp.fc1.bias": "mlp.fc1.bias",
    "mlp.fc2.weight": "mlp.fc2.weight",
    "mlp.fc2.bias": "mlp.fc2.bias",
}
_PROJECTOR_NAMES = {"mlp1.0.**": "layer_norm.**", "mlp1.1.**": "linear_1.**", "mlp1.3.**": "linear_2.**"}
_QKV = Operation(lambda fused: tuple(fused.chunk(3)), lambda *parts: (torch.cat(parts),))
_NOT_COMPUTED = {
    "dtype", "architectures", "transformers_version", "use_cache", "_name_or_path", "initializer_range",
    "pad_token_id", "bos_token_id", "eos_token_id", "layer_scale_init_value",
}  # fmt: skip
"""Keys of a configuration that change no result."""


def internvl_rules(official: Mapping[str, Any]) -> list[Rule]:
    """From the official tensors to those in the files of transformers' InternVL; ``inverse`` leads back.

    Qwen2, Phi-3 and Llama have the same names in both.
    """
    layer, native = "vision_model.encoder.layers.*.", "vision_tower.encoder.layer.*."
    rules = [
        Rule((f"{layer}attn.qkv.{kind}",), tuple(f"{native}attention.{part}_proj.{kind}" for part in "qkv"), _QKV)
        for kind in ("weight", "bias")
    ]
    rules += [Rule((layer + old,), (native + new,)) for old, new in _LAYER_NAMES.items()]
    rules += [Rule((f"vision_model.{old}",), (f"vision_tower.{new}",)) for old, new in _VISION_NAMES.items()]
    rules += [Rule((old,), (f"multi_modal_projector.{new}",)) for old, new in _PROJECTOR_NAMES.items()]
    if language_architecture(official["llm_config"]) == INTERNLM2:
        return rules + internlm2.rules_of(official["llm_config"], "language_model.", "language_model.")
    return [*rules, Rule(("language_model.**",), ("language_model.**",))]


def to_native(
    folder: Path,
    output: Path,
    *,
    template: str | None = None,
    max_tiles: int | None = None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> dict[str, Any]:
    """Write the model directory of an official one into the existing, empty directory ``output``; return facts.

    ``template`` names a prompt template, None takes the model's own; ``max_tiles`` per picture, None takes the
    model's own; ``dtype`` None keeps each tensor's number format. An 8-bit checkpoint is dequantised. Raises
    :class:`UserError` before a weight is written if anything does not fit.
    """
    official, config = _official_config(folder)
    with naming(folder / "config.json"):
        tile_range(official, max_tiles)
    template = template or own_template(folder, official)
    tokenizer = load_tokenizer(folder, _TOKENS)
    *read, unread = _TOKENS.values()
    check_rows(tokenizer, config.text_config.vocab_size, read, folder, {unread})
    check_control(tokenizer, official["llm_config"], folder)
    tokenizer.chat_template = chat_template(template, "internvl")
    fit_tokenizer(tokenizer)
    with naming(folder):
        check_template(tokenizer)
    config.image_token_id = tokenizer.convert_tokens_to_ids(_TOKENS["context_image_token"])
    generation = generation_config(folder, config, tokenizer)
    tensors = _official_tensors(folder, official, dtype)
    pieces = plan(internvl_rules(official), tensors.kinds, folder)
    if any(HEAD in piece.targets for piece in pieces):  # stored apart, so it counts whatever the configuration says
        _untie(config)
    shapes = _expected(config, folder)
    with naming(folder):
        kinds = write_tensors(tensors, pieces, output, shapes, dtype=dtype, max_shard_bytes=max_shard_bytes)
    if dtype is not None:
        set_dtype(config, dtype)
    write_config(config, output)
    tokenizer.save_pretrained(output)
    tiles = write_processor(official, max_tiles, output)
    generation.save_pretrained(output)
    copy_files(folder, output / OFFICIAL)
    dequantised = len(tensors.quantised) if isinstance(tensors, Int8) else 0
    return {**facts_of(kinds), "template": template, "max_tiles": tiles, "dequantised": dequantised}


def to_official(
    folder: Path,
    output: Path,
    *,
    official_files: Path | None = None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> dict[str, Any]:
    """Write the official directory of a model directory into the existing, empty directory ``output``; return facts.

    Configuration, code and tokenizer are those of ``official_files`` (an official directory), by default those kept
    in ``folder``/official; they are copied, never made or run. A checkpoint that was in 8 bits comes back in the model
    directory's number format, without ``quantization_config``. The tiles of a picture are the model directory's.
    """
    source = official_source(folder, official_files)
    official, config = _official_config(source)
    with checking("broken configuration", folder / "config.json"):
        family = read_json(folder / "config.json").get("model_type")
    if family != InternVLConfig.model_type:
        raise UserError(f"wrong family: {family}, not {InternVLConfig.model_type}", file=folder / "config.json")
    with checking("broken configuration", folder / "config.json"):
        native = InternVLConfig.from_pretrained(folder, local_files_only=True)
    if not native.tie_word_embeddings:
        _untie(config)
    _check_same(native, config, folder)
    prompts, changed = prompt_facts(folder, source, official), set_tiles(official, folder)
    tensors = Checkpoint(folder)
    rules = inverse(internvl_rules(official))
    like = {name: Kind(torch.float32, shape) for name, shape in _expected(config, source).items()}
    shapes = made_shapes(plan(rules, like), like)
    pieces = plan(rules, tensors.kinds, folder)
    with naming(folder):
        kinds = write_tensors(tensors, pieces, output, shapes, dtype=dtype, max_shard_bytes=max_shard_bytes)
    copy_files(source, output)
    removed, stored = official.pop("quantization_config", None) is not None, main_dtype(kinds)
    if removed or stored != official_dtype(official):
        changed = True
        for part in (official, official["llm_config"], official["vision_config"]):
            part["torch_dtype"] = str(stored).removeprefix("torch.")
        official["llm_config"].pop("quantization_config", None)
    if changed:
        write_json(output / "config.json", official)
    return {**facts_of(kinds), **prompts, "quantization_removed": removed, "max_tiles": tile_range(official)[1]}


def _official_config(folder: Path) -> tuple[dict[str, Any], InternVLConfig]:
    """The content of an official config.json, and what it is in transformers' InternVL, less ``image_token_id``."""
    official: dict[str, Any] = read_json(folder / "config.json")
    with naming(folder / "config.json"):
        return official, native_config(official)


def _expected(config: InternVLConfig, folder: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor; :class:`UserError` if transformers can make no model of the configuration."""
    with checking("broken configuration", folder / "config.json"):
        return expected_tensors(config)


def _official_tensors(folder: Path, official: Mapping[str, Any], dtype: torch.dtype | None) -> Tensors:
    """The tensors of an official directory, those in 8 bits dequantised."""
    checkpoint = Checkpoint(folder)
    quantisation = official.get("quantization_config")
    if not quantisation:
        return checkpoint
    if not isinstance(quantisation, dict) or not quantisation.get("load_in_8bit"):
        raise UserError(
            "unsupported checkpoint: it is quantised, and not in LLM.int8 format",
            "use the checkpoint that is not quantised",
            file=folder / "config.json",
            field="quantization_config",
        )
    return Int8(checkpoint, dtype or official_dtype(official), folder)


def _check_same(native: InternVLConfig, config: InternVLConfig, folder: Path) -> None:
    """Refuse a model directory that computes something else than its official configuration says."""
    ours, theirs = native.to_dict(), config.to_dict()
    different = []
    for part in ("text_config", "vision_config"):
        keys = sorted({*ours[part], *theirs[part]} - _NOT_COMPUTED)
        different += [f"{part}.{key}" for key in keys if ours[part].get(key) != theirs[part].get(key)]
    refuse_different(different, folder)


def _untie(config: InternVLConfig) -> None:
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = False
