"""Assemble the base model: vision tower + untrained projector + language model -> one complete model directory."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from vlmflow.errors import UserError
from vlmflow.files import sha256_file, staged_directory, write_manifest
from vlmflow.models.dinov2 import load_dinov2_onnx, resize_positions
from vlmflow.models.directory import LANGUAGE, PROJECTOR, VISION, save_model
from vlmflow.models.gguf import load_gguf
from vlmflow.models.template import PLACEHOLDER, chat_template
from vlmflow.provenance import write_provenance

_STATISTICS = {
    "clip_vision_model": (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
    "dinov2": (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
}


def build_model(config: dict[str, Any], output: Path) -> None:
    """Write the model directory of a ``models`` node; ``output`` is its manifest.

    ``config``: family, language and vision (paths), template, image_size, feature_layer, dtype, seed.
    """
    if config["family"] != "llava":
        raise UserError(
            f"models of family {config['family']} cannot be built by this version", "use a model of family llava"
        )
    language_path, vision_path = Path(config["language"]), Path(config["vision"])
    language, tokenizer = load_language(language_path)
    vision = load_vision(vision_path, config["image_size"])
    torch.manual_seed(config["seed"])
    dtype = getattr(torch, config["dtype"])
    model = assemble_llava(language, vision, tokenizer, config["feature_layer"]).to(dtype)
    processor = _processor(vision, tokenizer, chat_template(config["template"]))
    with staged_directory(output.parent) as directory:
        save_model(model, processor, directory)
        inputs = {str(path): _content_hash(path) for path in (language_path, vision_path)}
        write_provenance(directory, config, inputs)
        write_manifest(directory, family="llava", template=config["template"])


def load_language(path: Path) -> tuple[Any, Any]:
    """Causal language model (float32) and tokenizer, from a GGUF file or a Hugging Face directory."""
    if path.suffix == ".gguf":
        return load_gguf(path)
    kind = _model_type(path)
    try:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, local_files_only=True)
    except ValueError as error:
        raise UserError(f"transformers has no language model of type '{kind}'", str(error)[:200], file=path) from None
    return model, AutoTokenizer.from_pretrained(path, local_files_only=True)


def load_vision(path: Path, image_size: int | None) -> Any:
    """Vision tower (float32): a DINOv2 ONNX export, or a directory of a CLIP or DINOv2 vision model."""
    if path.suffix == ".onnx":
        tower = load_dinov2_onnx(path)
    else:
        kind = _model_type(path)
        loader = CLIPVisionModel if kind.startswith("clip") else AutoModel
        tower = loader.from_pretrained(path, dtype=torch.float32, local_files_only=True)
    if tower.config.model_type not in _STATISTICS:
        raise UserError(f"no vision tower of type '{tower.config.model_type}'", f"there is {', '.join(_STATISTICS)}")
    patch = tower.config.patch_size
    if image_size is not None and image_size != tower.config.image_size:
        if image_size % patch:
            raise UserError(f"image_size {image_size} is no multiple of the tower's patch size {patch}")
        if tower.config.model_type != "dinov2":
            raise UserError("image_size can be changed for DINOv2 towers only", f"use {tower.config.image_size}")
        resize_positions(tower, image_size)
    return tower


def assemble_llava(language: Any, vision: Any, tokenizer: Any, feature_layer: int) -> Any:
    """LlavaForConditionalGeneration around trained parts; the projector is new and `<image>` becomes a token.

    Its embedding row (never read: picture features take its place) and the rows that pad the vocabulary to a multiple
    of 64 get the mean of the others, so that none can win as an output.
    """
    tokenizer.add_tokens([PLACEHOLDER], special_tokens=True)
    rows = language.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        language.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64, mean_resizing=False)
        with torch.no_grad():
            for table in {language.get_input_embeddings().weight, language.get_output_embeddings().weight}:
                table[rows:] = table[:rows].mean(0)
    config = LlavaConfig(
        text_config=language.config,
        vision_config=vision.config,
        image_token_index=tokenizer.convert_tokens_to_ids(PLACEHOLDER),
        vision_feature_layer=feature_layer,
        vision_feature_select_strategy="default",
        tie_word_embeddings=language.config.tie_word_embeddings,
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    projector = model.get_submodule(PROJECTOR).to_empty(device="cpu")
    for layer in (projector.linear_1, projector.linear_2):
        layer.reset_parameters()
    parts = {LANGUAGE: language.model, VISION: vision, PROJECTOR: projector}
    state = {f"{prefix}.{name}": value for prefix, part in parts.items() for name, value in part.state_dict().items()}
    state["lm_head.weight"] = language.get_output_embeddings().weight
    model.load_state_dict(state, strict=True, assign=True)
    model.tie_weights()
    model.generation_config = language.generation_config
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model


def _processor(vision: Any, tokenizer: Any, template: str) -> LlavaProcessor:
    side, patch = vision.config.image_size, vision.config.patch_size
    mean, std = _STATISTICS[vision.config.model_type]
    pictures = LlavaImageProcessorPil(
        do_pad=True,  # to a square, as LLaVA 1.5 trains; nothing of the picture is cut off
        size={"height": side, "width": side},
        do_center_crop=False,
        image_mean=mean,
        image_std=std,
    )
    tokenizer.chat_template = template
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,  # the class token, which "default" drops again
    )


def _model_type(path: Path) -> str:
    if not (path / "config.json").is_file():
        raise UserError("no Hugging Face model directory (config.json is missing)", file=path)
    return str(AutoConfig.from_pretrained(path, local_files_only=True).model_type)


def _content_hash(path: Path) -> str:
    """SHA-256 of a file, or of the weights and configuration of a directory."""
    if path.is_file():
        return sha256_file(path)
    files = sorted(file for pattern in ("*.safetensors", "*.json") for file in path.glob(pattern))
    return hashlib.sha256("".join(sha256_file(file) for file in files).encode()).hexdigest()
