"""What a model sees of a picture: InternVL's tiles pixel by pixel, and which layers adapters go to."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_tokens import internvl
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    Dinov2Config,
    InternVLConfig,
    InternVLVisionConfig,
    LlamaConfig,
    LlavaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    SiglipVisionConfig,
)

from vlmflow.errors import UserError
from vlmflow.models.directory import LANGUAGE, VISION, load_processor
from vlmflow.models.families import family_of, family_of_model
from vlmflow.models.linears import linear_pattern
from vlmflow.models.pictures import picture_lengths, picture_tiles, pixel_values
from vlmflow.weights.skeleton import skeleton

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * height).integers(
        0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8
    )
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def published_tiles(picture: Image.Image, max_tiles: int) -> np.ndarray:
    """``dynamic_preprocess`` and ``build_transform`` of OpenGVLab/InternVL (internvl/train/dataset.py), in numpy."""
    width, height = picture.size
    grids = sorted(
        {
            (i, j)
            for n in range(1, max_tiles + 1)
            for i in range(1, n + 1)
            for j in range(1, n + 1)
            if i * j <= max_tiles
        },
        key=lambda grid: grid[0] * grid[1],
    )
    best, least = (1, 1), float("inf")
    for grid in grids:
        distance = abs(width / height - grid[0] / grid[1])
        if distance < least or (distance == least and width * height > 0.5 * 448 * 448 * grid[0] * grid[1]):
            best, least = grid, distance
    resized = picture.resize((448 * best[0], 448 * best[1]), Image.Resampling.BICUBIC)
    tiles = [
        resized.crop((448 * column, 448 * row, 448 * (column + 1), 448 * (row + 1)))
        for row in range(best[1])
        for column in range(best[0])
    ]
    if len(tiles) != 1:
        tiles.append(picture.resize((448, 448), Image.Resampling.BICUBIC))
    return np.stack([((np.asarray(tile) / 255 - MEAN) / STD).transpose(2, 0, 1) for tile in tiles])


@pytest.mark.parametrize("size", [(640, 480), (300, 200), (448, 448), (1000, 333), (61, 700)])
@pytest.mark.parametrize("max_tiles", [1, 6, 12])
def test_internvl_sees_the_published_pixels(size: tuple[int, int], max_tiles: int) -> None:
    picture = noise(*size)
    values = pixel_values(internvl(), [picture], max_tiles)
    expected = published_tiles(picture, max_tiles)
    assert list(values.shape) == list(expected.shape) == [picture_tiles(internvl(), [size], max_tiles)[0], 3, 448, 448]
    assert np.abs(values.numpy() - expected).max() < 1e-5


def test_pictures_of_a_record_share_the_tiles() -> None:
    pictures = [noise(640, 480), noise(200, 800)]
    sizes = [picture.size for picture in pictures]
    values = pixel_values(internvl(), pictures)
    assert len(values) == sum(picture_tiles(internvl(), sizes)) == 7 + 5
    assert picture_lengths(internvl(), sizes) == [7 * 256, 5 * 256]
    assert torch.equal(values[:7], pixel_values(internvl(), pictures[:1], 6))


def test_llava_pictures_have_one_length(tiny_model: Path) -> None:
    processor = load_processor(tiny_model)
    sizes = [(640, 480), (20, 30)]
    values = pixel_values(processor, [noise(*size) for size in sizes])
    assert len(values) == sum(picture_tiles(processor, sizes)) == 2
    assert len(set(picture_lengths(processor, sizes))) == 1
    assert family_of(processor) is not family_of(internvl())


TEXT = {"vocab_size": 99, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
LANGUAGES = {
    "llama": (LlamaConfig(**TEXT), 7), "qwen2": (Qwen2Config(**TEXT), 7), "mistral": (MistralConfig(**TEXT), 7),
    "phi3": (Phi3Config(**TEXT), 4),
}  # fmt: skip
TOWERS = {
    "clip": CLIPVisionConfig(**TOWER), "siglip": SiglipVisionConfig(**TOWER), "dinov2": Dinov2Config(**TOWER),
    "internvit": InternVLVisionConfig(**TOWER),
}  # fmt: skip


def composed(language: PreTrainedConfig, tower: PreTrainedConfig) -> PreTrainedConfig:
    made = InternVLConfig if tower.model_type == "internvl_vision" else LlavaConfig
    return made(text_config=language, vision_config=tower, tie_word_embeddings=False)


def adapted(config: PreTrainedConfig, part: str) -> set[str]:
    pattern = re.compile(linear_pattern(config, part))
    return {name for name, _ in skeleton(config).named_modules() if pattern.fullmatch(name)}


def linears(config: PreTrainedConfig, part: str) -> set[str]:
    """Every linear layer inside the blocks of a part, found by looking."""
    return {
        name
        for name, module in skeleton(config).named_modules()
        if isinstance(module, torch.nn.Linear) and name.startswith(part) and re.search(r"\.layers?\.\d+\.", name)
    }


@pytest.mark.parametrize("language", LANGUAGES)
def test_language_adapters_are_on_every_linear_of_the_blocks_and_nowhere_else(language: str) -> None:
    config, count = LANGUAGES[language]
    found = adapted(composed(config, TOWERS["clip"]), LANGUAGE)
    assert found == linears(composed(config, TOWERS["clip"]), LANGUAGE)
    assert len(found) == 2 * count
    assert not any("lm_head" in name or "embed" in name or "projector" in name for name in found)


@pytest.mark.parametrize("tower", TOWERS)
def test_vision_adapters_are_on_every_linear_of_the_blocks_and_nowhere_else(tower: str) -> None:
    config = composed(LANGUAGES["llama"][0], TOWERS[tower])
    found = adapted(config, VISION)
    assert found == linears(config, VISION)
    assert len(found) == 2 * 6


def test_an_unknown_network_is_refused() -> None:
    config = copy.deepcopy(composed(LANGUAGES["llama"][0], TOWERS["clip"]))
    config.text_config.model_type = "novel"
    with pytest.raises(UserError, match="network of type 'novel'"):
        linear_pattern(config, LANGUAGE)


SMALL = {"image_size": 28, "patch_size": 7, **TOWER}
SEEING = {
    "clip": LlavaConfig(vision_config=CLIPVisionConfig(**SMALL), vision_feature_layer=-2),
    "clip, several layers": LlavaConfig(vision_config=CLIPVisionConfig(**SMALL), vision_feature_layer=[-3, -1]),
    "siglip": LlavaConfig(
        vision_config=SiglipVisionConfig(**SMALL), vision_feature_layer=-1, vision_feature_select_strategy="full"
    ),
    "dinov2": LlavaConfig(vision_config=Dinov2Config(**SMALL), vision_feature_layer=-2),
    "internvit": InternVLConfig(vision_config=InternVLVisionConfig(**SMALL)),
    "internvit, norm": InternVLConfig(
        vision_config=InternVLVisionConfig(**SMALL, use_mean_pooling=False, norm_type="rms_norm")
    ),
}


def seeing(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """A random model whose picture embeddings are far from zero."""
    config = copy.deepcopy(SEEING[name])
    config.text_config = LlamaConfig(**TEXT)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.to(dtype).eval()


def tiles() -> torch.Tensor:
    return torch.randn(3, 3, 28, 28, generator=torch.Generator().manual_seed(1))


def official(model: Any, pixel_values: torch.Tensor) -> torch.Tensor:
    made = model.model.get_image_features(pixel_values=pixel_values).pooler_output
    return (torch.cat(list(made)) if isinstance(made, list) else made).reshape(-1, TEXT["hidden_size"])


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SEEING)
def test_projected_features_are_the_models_own_bit_for_bit(name: str, dtype: torch.dtype, autocast: bool) -> None:
    model, values = seeing(name, dtype), tiles().to(dtype)
    family = family_of_model(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        features = family.features(model, values)
        made, expected = family.project(model, features), official(model, values)
    assert features.shape[0] == 3
    assert features.shape[1] == len(made) // 3
    assert made.dtype == expected.dtype
    assert torch.equal(made, expected)
    assert made.float().std() > 0.1


@pytest.mark.parametrize("name", SEEING)
def test_gradients_reach_the_tower_through_features(name: str) -> None:
    model, values = seeing(name), tiles()
    family = family_of_model(model)
    weight = next(p for n, p in model.model.vision_tower.named_parameters() if "patch_embed" in n and "weight" in n)
    official(model, values).square().sum().backward()
    expected, weight.grad = weight.grad, None
    family.project(model, family.features(model, values)).square().sum().backward()
    assert torch.equal(weight.grad, expected)


@pytest.mark.parametrize("name", ["clip", "dinov2"])
def test_layers_that_the_projector_does_not_read_are_not_computed(name: str) -> None:
    model = seeing(name)
    tower = model.model.vision_tower
    layers = next(module for module in tower.modules() if isinstance(module, torch.nn.ModuleList))
    layers[-1].register_forward_pre_hook(lambda *_: pytest.fail("the last layer was computed"))
    family_of_model(model).features(model, tiles())


def test_a_model_of_another_family_is_refused() -> None:
    with pytest.raises(UserError, match="model of type 'novel'"):
        family_of_model(SimpleNamespace(config=SimpleNamespace(model_type="novel")))
