"""Official LLaVA 1.5 directories (LlavaLlamaForCausalLM) to and from transformers' own LLaVA, tensor by tensor.

Source: haotian-liu/LLaVA, llava/model: llava_arch.py, multimodal_encoder/clip_encoder.py,
multimodal_projector/builder.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from vlmflow.convert.layout import (
    OFFICIAL,
    RECORD,
    checking,
    copy_files,
    facts_of,
    made_shapes,
    main_dtype,
    naming,
    official_source,
    refuse_different,
)
from vlmflow.convert.tokenizer import load_tokenizer
from vlmflow.errors import UserError
from vlmflow.files import read_json, write_json
from vlmflow.models.directory import set_dtype
from vlmflow.models.llava_directory import (
    HEAD,
    TABLE,
    add_placeholder,
    check_layer,
    extended,
    llava_config,
    padded_rows,
    prefixed,
    write_small_files,
)
from vlmflow.models.parts import Chosen, config_of, expected_of, generation_of, refuse_quantised, without_buffers
from vlmflow.models.published import published
from vlmflow.models.tower import picture_settings, vision_config, vision_part
from vlmflow.weights.checkpoint import Checkpoint
from vlmflow.weights.kinds import Joined, Kind, Tensors
from vlmflow.weights.mapping import Rule, inverse, plan
from vlmflow.weights.stream import MAX_SHARD_BYTES, check_tensors, write_tensors

_TOWER = "model.vision_tower.vision_tower."
_NATIVE_TOWER = "vision_tower."
_STRATEGIES = {"patch": "default", "cls_patch": "full"}
_REQUIRED = {
    "mm_projector_type": "mlp2x_gelu",
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
}
_PADDED = {"pad": True, "square": False, None: False}
"""image_aspect_ratio -> whether LLaVA's own code pads a picture (process_images in llava/mm_utils.py)."""
_LLAMA_KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps",
    "attention_bias", "attention_dropout", "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings",
)  # fmt: skip
_NEEDED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_NOT_COMPUTED = ("vocab_size", "initializer_range", "attention_dropout", "bos_token_id", "eos_token_id", "pad_token_id")
_PUBLISHED = "llava-vicuna-7b-v1.5"


def llava_rules(rows: int, more: int, dtype: torch.dtype | None = None) -> list[Rule]:
    """From the official tensors to those in the files of transformers' LLaVA; ``inverse`` leads back.

    The vocabulary grows from ``rows`` to ``more``, in number format ``dtype`` (None: its own).
    """
    language = [Rule((HEAD,), (HEAD,)), Rule(("model.**",), ("model.**",))]
    return [
        Rule(("model.mm_projector.0.**",), ("multi_modal_projector.linear_1.**",)),
        Rule(("model.mm_projector.2.**",), ("multi_modal_projector.linear_2.**",)),
        Rule((f"{_TOWER}**",), (f"{_NATIVE_TOWER}**",)),
        *prefixed(extended(language, rows, more, dtype), "", "language_model."),
    ]


def to_native(
    folder: Path,
    output: Path,
    *,
    template: str | None = None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    vision: Path | None = None,
) -> dict[str, Any]:
    """Write the model directory of an official one into the existing, empty directory ``output``; return facts.

    ``template`` None is Vicuna's, or Llama 3's where its tokens are known; ``dtype`` None keeps each tensor's number
    format; ``vision`` is the CLIP folder, needed unless the checkpoint holds a tower of the kind that LLaVA 1.5 was
    published with. A tower in the checkpoint goes before the one in ``vision``. Raises :class:`UserError` before a
    weight is written if anything does not fit.
    """
    official = _official_config(folder)
    stored = without_buffers(Checkpoint(folder))
    inside = any(name.startswith(_TOWER) for name in stored.kinds)
    tower = _tower_config(official, vision, inside, folder)
    _check_projector(stored.kinds, tower, folder)
    tokenizer = load_tokenizer(folder)
    template = template or ("llama3" if "<|start_header_id|>" in tokenizer.get_vocab() else "vicuna")
    with naming(folder):
        add_placeholder(tokenizer, template)
    file, layer = folder / "config.json", official["mm_vision_select_layer"]
    check_layer(layer, tower, "mm_vision_select_layer", file)
    with checking("broken configuration", file):
        text, rows = _text_config(official), int(official["vocab_size"])
    with naming(folder):
        more = padded_rows(tokenizer, rows)
    with checking("broken configuration", file):
        config = llava_config(text, tower, tokenizer, layer, _STRATEGIES[official["mm_vision_select_feature"]])
    rules = llava_rules(rows, more, dtype)
    tensors: Tensors = stored
    if not inside:
        assert vision is not None
        part = vision_part(vision, None)
        tensors = Joined({"": stored, "vision.": part.tensors})
        rules = [*prefixed(part.rules, "vision.", ""), *rules]
    pieces = plan(rules, tensors.kinds, folder)
    expected = expected_of(config, file)
    with naming(folder):
        kinds = write_tensors(tensors, pieces, output, expected, dtype=dtype, max_shard_bytes=max_shard_bytes)
    set_dtype(config, dtype or stored.kinds[TABLE].dtype)
    pictures = picture_settings(vision) if vision is not None else {}
    pad = _PADDED[official.get("image_aspect_ratio")]
    with naming(folder):
        write_small_files(config, tokenizer, generation_of(folder), output, pictures=pictures, pad=pad)
    copy_files(folder, output / OFFICIAL)
    write_json(output / OFFICIAL / RECORD, {"tower": inside, "tower_sha256": _tower_hash(output)})
    return {**facts_of(kinds), "template": template, "tower_in_checkpoint": inside, "rows_added": more - rows}


def to_official(
    folder: Path,
    output: Path,
    *,
    official_files: Path | None = None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> dict[str, Any]:
    """Write the official directory of a model directory into the existing, empty directory ``output``; return facts.

    Configuration and tokenizer are those of ``official_files`` (an official directory), by default those kept in
    ``folder``/official. Rows that the vocabulary was extended by are dropped. The vision tower is left to the one that
    the configuration names where the official checkpoint left it too and nothing has changed it since; otherwise it is
    written, and ``unfreeze_mm_vision_tower`` makes LLaVA's own code load it.
    """
    source = official_source(folder, official_files)
    official = _official_config(source)
    native = _native_config(folder)
    _check_same(native, official, folder)
    rows, more = official["vocab_size"], native.text_config.vocab_size
    record = read_json(source / RECORD) if (source / RECORD).is_file() else {"tower": True}
    inside = record["tower"] or _tower_hash(folder) != record["tower_sha256"]
    stored = Checkpoint(folder)
    with naming(folder):
        check_tensors(stored.kinds, expected_of(native, folder / "config.json"))
    tensors = stored if inside else Chosen(stored, lambda name: not name.startswith(_NATIVE_TOWER))
    pieces = plan(inverse(llava_rules(rows, more)), tensors.kinds, folder)
    kinds = write_tensors(tensors, pieces, output, made_shapes(pieces, tensors.kinds), dtype=dtype,
                          max_shard_bytes=max_shard_bytes)  # fmt: skip
    copy_files(source, output)
    changes: dict[str, Any] = {}
    if inside and not official.get("unfreeze_mm_vision_tower"):
        changes["unfreeze_mm_vision_tower"] = True
    dtype_name = str(main_dtype(kinds)).removeprefix("torch.")
    if dtype_name != official.get("torch_dtype", dtype_name):
        changes["torch_dtype"] = dtype_name
    if {**official, **changes} != official:
        write_json(output / "config.json", {**official, **changes})
    return {**facts_of(kinds), "tower_in_checkpoint": inside, "rows_dropped": more - rows}


def _official_config(folder: Path) -> dict[str, Any]:
    """The content of an official config.json that transformers' LLaVA can compute."""
    official, file = config_of(folder), folder / "config.json"
    if "LlavaLlamaForCausalLM" not in (official.get("architectures") or []):
        found = official.get("architectures") or official.get("model_type")
        raise UserError(f"wrong family: {found}, not LlavaLlamaForCausalLM (official LLaVA)", file=file)
    refuse_quantised(official, file)
    for key, wanted in _REQUIRED.items():
        value = official.get(key, wanted)
        if value != wanted:
            reason = f"unsupported model: {key} is {value}"
            raise UserError(reason, f"supported is {wanted}, as in LLaVA 1.5", file=file, field=key)
    ratio = official.get("image_aspect_ratio")
    if ratio not in list(_PADDED):
        reason = f"unsupported model: image_aspect_ratio is {ratio}"
        raise UserError(reason, "supported is pad, as in LLaVA 1.5, or none", file=file, field="image_aspect_ratio")
    official.setdefault("mm_vision_select_layer", -2)
    official.setdefault("mm_vision_select_feature", "patch")
    if official["mm_vision_select_feature"] not in list(_STRATEGIES):
        reason = f"unsupported model: mm_vision_select_feature is {official['mm_vision_select_feature']}"
        raise UserError(reason, f"there is {', '.join(_STRATEGIES)}", file=file, field="mm_vision_select_feature")
    lacking = [key for key in _NEEDED if key not in official]
    if lacking:
        raise UserError(f"broken configuration: there is no {', '.join(lacking)}", file=file)
    return official


def _text_config(official: Mapping[str, Any]) -> LlamaConfig:
    """The language model's configuration."""
    scaling = dict(official.get("rope_scaling") or {})
    kind = scaling.pop("type", scaling.pop("rope_type", "default"))
    rope = {**scaling, "rope_type": kind, "rope_theta": float(official.get("rope_theta", 10_000))}
    config = LlamaConfig(**{key: official[key] for key in _LLAMA_KEYS if key in official}, rope_parameters=rope)
    config.tie_word_embeddings = bool(official.get("tie_word_embeddings", False))
    config.architectures = ["LlamaForCausalLM"]
    return config


def _tower_config(official: Mapping[str, Any], vision: Path | None, inside: bool, folder: Path) -> Any:
    """The configuration of the tower: of the folder that was given, or the published one of a name that is known."""
    if vision is not None:
        config = vision_config(vision)
        if config.model_type != CLIPVisionConfig.model_type:
            raise UserError(f"wrong part: a tower of type '{config.model_type}', LLaVA 1.5 has CLIP's", file=vision)
        return config
    name = str(official.get("mm_vision_tower", official.get("vision_tower")))
    known = published(_PUBLISHED)
    if inside and Path(name).name == Path(known.hub["vision"]).name:  # type: ignore[index]
        return CLIPVisionConfig(**known.config["vision"]["vision_config"])
    held = f"the configuration of its vision tower {name}" if inside else f"the vision tower {name}"
    raise UserError(
        f"missing part: the checkpoint does not hold {held}",
        f"download {name} and name its folder as `vision`",
        file=folder,
        field="vision",
    )


def _check_projector(kinds: Mapping[str, Kind], tower: Any, folder: Path) -> None:
    kind = kinds.get("model.mm_projector.0.weight")
    if kind is not None and kind.shape[-1] != tower.hidden_size:
        raise UserError(
            f"wrong part: the vision tower has {tower.hidden_size} features, the projector takes {kind.shape[-1]}",
            "give the tower that the checkpoint was trained with (mm_vision_tower in its config.json)",
            file=folder,
            field="vision",
        )


def _native_config(folder: Path) -> LlavaConfig:
    family = config_of(folder).get("model_type")
    if family != LlavaConfig.model_type:
        raise UserError(f"wrong family: {family}, not {LlavaConfig.model_type}", file=folder / "config.json")
    with checking("broken configuration", folder / "config.json"):
        return LlavaConfig.from_pretrained(folder, local_files_only=True)


def _check_same(native: LlavaConfig, official: Mapping[str, Any], folder: Path) -> None:
    """Refuse a model directory that computes something else than its official configuration says."""
    with checking("broken configuration", folder / "config.json"):
        ours, theirs = native.text_config.to_dict(), _text_config(official).to_dict()
    keys = [*(key for key in _LLAMA_KEYS if key not in _NOT_COMPUTED), "rope_parameters"]
    different = [key for key in keys if ours.get(key) != theirs.get(key)]
    if native.text_config.vocab_size < official["vocab_size"]:
        different.append("vocab_size")
    if native.vision_feature_layer != official["mm_vision_select_layer"]:
        different.append("mm_vision_select_layer")
    if native.vision_feature_select_strategy != _STRATEGIES[official["mm_vision_select_feature"]]:
        different.append("mm_vision_select_feature")
    refuse_different(different, folder)


def _tower_hash(folder: Path) -> str:
    """SHA-256 of names, kinds and values of the vision tower of a model directory."""
    checkpoint, digest = Checkpoint(folder), hashlib.sha256()
    for name in sorted(name for name in checkpoint.kinds if name.startswith(_NATIVE_TOWER)):
        kind = checkpoint.kinds[name]
        digest.update(f"{name} {kind.dtype} {kind.shape}".encode())
        digest.update(memoryview(checkpoint.read(name).reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()
