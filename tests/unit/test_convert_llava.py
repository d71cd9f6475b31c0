"""Official LLaVA directories to model directories and back: values, small files, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, CLIPVisionConfig, CLIPVisionModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from llava_parts import NODE, equal, values
from official import write_weights
from official_llava import PICTURE, make_llava_official, reference_llava_logits
from vlmflow.convert.internvl import OFFICIAL
from vlmflow.convert.llava import RECORD, to_native, to_official
from vlmflow.errors import UserError
from vlmflow.files import MARKER, read_json, staged_directory, write_json
from vlmflow.models.build import build_model
from vlmflow.models.directory import load_processor
from vlmflow.models.families import llava as family
from vlmflow.models.published import published

TOWER = "model.vision_tower.vision_tower."


def native(source: Path, output: Path, **options: Any) -> dict[str, Any]:
    with staged_directory(output) as folder:
        return to_native(source, folder, **options)


def official(model: Path, output: Path, **options: Any) -> dict[str, Any]:
    with staged_directory(output) as folder:
        return to_official(model, folder, **options)


def edit(file: Path, **changes: Any) -> None:
    write_json(file, {**read_json(file), **changes})


@pytest.fixture
def twin(tmp_path: Path) -> tuple[Path, Path]:
    """Official directory and CLIP."""
    return make_llava_official(tmp_path / "source")


@pytest.mark.parametrize("tower", [False, True])
@pytest.mark.parametrize("shards", [1, 3])
def test_there_and_back_bit_by_bit(tower: bool, shards: int, tmp_path: Path) -> None:
    source, vision = make_llava_official(tmp_path / "source", tower=tower, shards=shards)
    facts = native(source, tmp_path / "model", vision=vision, max_shard_bytes=100_000)
    back = official(tmp_path / "model", tmp_path / "back")
    assert equal(values(tmp_path / "back"), values(source))
    assert any(name.startswith(TOWER) for name in values(tmp_path / "back")) is tower
    assert facts["tower_in_checkpoint"] is back["tower_in_checkpoint"] is tower
    assert facts["rows_added"] == back["rows_dropped"] > 0
    kept = {file.name for file in source.iterdir() if "safetensors" not in file.name}
    assert {file.name for file in (tmp_path / "model" / OFFICIAL).iterdir()} == kept | {RECORD}
    assert {file.name for file in (tmp_path / "back").iterdir() if "safetensors" not in file.name} == kept | {MARKER}
    for file in kept:
        assert (tmp_path / "back" / file).read_bytes() == (source / file).read_bytes()


@pytest.mark.parametrize("tower", [False, True])
@torch.no_grad()
def test_the_same_logits(tower: bool, tmp_path: Path) -> None:
    source, vision = make_llava_official(tmp_path / "source", dtype=torch.float32, tower=tower)
    native(source, tmp_path / "model", vision=vision)
    model, report = AutoModelForImageTextToText.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(report.values())
    side = model.config.vision_config.image_size
    patches = (side // model.config.vision_config.patch_size) ** 2
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    words = [1, 7, PICTURE, 9, 11, 4, 15]
    pictures = [model.config.image_token_index] * patches
    expanded = [token for word in words for token in (pictures if word == PICTURE else [word])]
    found = model.eval()(input_ids=torch.tensor([expanded]), pixel_values=pixels).logits
    expected = reference_llava_logits(source, vision, torch.tensor([words]), pixels)
    assert (found[..., : expected.shape[-1]] - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_the_small_files(twin: tuple[Path, Path], tmp_path: Path) -> None:
    source, vision = twin
    facts = native(source, tmp_path / "model", vision=vision)
    config = read_json(tmp_path / "model" / "config.json")
    assert facts["template"] == "vicuna"
    assert config["architectures"] == ["LlavaForConditionalGeneration"]
    assert config["text_config"]["architectures"] == ["LlamaForCausalLM"]
    assert (config["vision_feature_layer"], config["vision_feature_select_strategy"]) == (-2, "default")
    assert config["pad_token_id"] == config["image_token_index"] != config["text_config"]["pad_token_id"]
    assert config["dtype"] == "float16" and config["text_config"]["vocab_size"] % 64 == 0
    for file in (tmp_path / "model").glob("*.json"):
        assert str(tmp_path) not in file.read_text(encoding="utf-8"), file


def test_another_number_format(twin: tuple[Path, Path], tmp_path: Path) -> None:
    source, vision = twin
    native(source, tmp_path / "model", vision=vision, dtype=torch.float32)
    assert {value.dtype for value in values(tmp_path / "model").values()} == {torch.float32}
    official(tmp_path / "model", tmp_path / "back", dtype=torch.float16)
    assert equal(values(tmp_path / "back"), values(source)), "float32 holds all of float16"
    assert read_json(tmp_path / "back" / "config.json") == read_json(source / "config.json")


def test_a_tower_that_was_trained_is_written(twin: tuple[Path, Path], tmp_path: Path) -> None:
    source, vision = twin
    native(source, tmp_path / "model", vision=vision)
    tensors = values(tmp_path / "model")
    name = "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight"
    write_weights({**tensors, name: tensors[name] + 1}, tmp_path / "model", 1)
    assert official(tmp_path / "model", tmp_path / "back")["tower_in_checkpoint"]
    made = values(tmp_path / "back")
    assert torch.equal(made[f"model.vision_tower.{name}"], tensors[name] + 1)
    assert read_json(tmp_path / "back" / "config.json")["unfreeze_mm_vision_tower"] is True
    assert {key for key in made if not key.startswith(TOWER)} == set(values(source))


def test_official_files_from_elsewhere(twin: tuple[Path, Path], tmp_path: Path) -> None:
    source, vision = twin
    native(source, tmp_path / "model", vision=vision)
    shutil.rmtree(tmp_path / "model" / OFFICIAL)
    with pytest.raises(UserError, match="missing files: the official ones"):
        official(tmp_path / "model", tmp_path / "back")
    assert not (tmp_path / "back").exists()
    facts = official(tmp_path / "model", tmp_path / "back", official_files=source)
    assert facts["tower_in_checkpoint"], "nothing tells whether the tower was trained"
    made = values(tmp_path / "back")
    assert equal({key: value for key, value in made.items() if not key.startswith(TOWER)}, values(source))
    edit(source / "config.json", rope_theta=5.0)
    with pytest.raises(UserError, match="differs from its official files in rope_parameters"):
        official(tmp_path / "model", tmp_path / "again", official_files=source)


def test_build_model_takes_it(twin: tuple[Path, Path], tmp_path: Path) -> None:
    source, vision = twin
    node = {"family": "llava", "checkpoint": str(source), "vision": str(vision), "template": None, "image_size": None,
            "feature_layer": -2, "dtype": None, "seed": 0}  # fmt: skip
    build_model(node, tmp_path / "model" / "manifest.json")
    manifest = read_json(tmp_path / "model" / "manifest.json")
    assert manifest["template"] == "vicuna" and f"official/{RECORD}" in manifest["files"]
    assert load_processor(tmp_path / "model" / "manifest.json").tokenizer.chat_template


def test_the_published_tower_needs_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its dimensions are known; here the twin's stand in for them."""
    source, vision = make_llava_official(tmp_path / "source", tower=True)
    edit(source / "config.json", mm_vision_tower="openai/clip-vit-large-patch14-336")
    with pytest.raises(UserError, match="1024 features, the projector takes 32"):
        native(source, tmp_path / "model")
    known = published("llava-vicuna-7b-v1.5")
    small = replace(known, config={"vision": read_json(vision / "config.json")})
    monkeypatch.setattr("vlmflow.convert.llava.published", lambda _: small)
    native(source, tmp_path / "model")
    native(source, tmp_path / "given", vision=vision)
    assert equal(values(tmp_path / "model"), values(tmp_path / "given"))


def drop(folder: Path) -> None:
    tensors = values(folder)
    del tensors["model.mm_projector.2.bias"]
    write_weights(tensors, folder, 1)


def newline(folder: Path) -> None:
    write_weights({**values(folder), "model.image_newline": torch.ones(4)}, folder, 1)


def fewer_rows(folder: Path) -> None:
    tensors = values(folder)
    write_weights({**tensors, "lm_head.weight": tensors["lm_head.weight"][:-1]}, folder, 1)


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def other_family(folder: Path) -> None:
    edit(folder / "config.json", architectures=["InternVLChatModel"], model_type="internvl_chat")


def linear(folder: Path) -> None:
    edit(folder / "config.json", mm_projector_type="linear")


def anyres(folder: Path) -> None:
    edit(folder / "config.json", image_aspect_ratio="anyres")


def aspect_ratio(value: str | None) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", image_aspect_ratio=value)


@pytest.mark.parametrize(("ratio", "pads"), [("pad", True), ("square", False), (None, False)])
def test_pictures_are_treated_as_by_the_official_code(
    ratio: str | None, pads: bool, twin: tuple[Path, Path], tmp_path: Path
) -> None:
    """Padded, or resized and cut out by the tower's own processor, with the tower's own statistics."""
    source, vision = twin
    aspect_ratio(ratio)(source)
    side = read_json(vision / "config.json")["vision_config"]["image_size"]
    own = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.9, 0.8, 0.7], "resample": 2}
    edit(vision / "preprocessor_config.json", **own, size={"shortest_edge": side}, crop_size=side)
    build_model({**NODE, "checkpoint": str(source), "vision": str(vision)}, tmp_path / "model" / "manifest.json")
    picture = Image.effect_noise((90, 60), 80).convert("RGB")
    seen = CLIPImageProcessorPil.from_pretrained(vision)
    square = Image.new("RGB", (90, 90), tuple(int(value * 255) for value in own["image_mean"]))  # type: ignore[attr-defined]
    square.paste(picture, (0, 15))
    expected = seen([square if pads else picture], return_tensors="pt")["pixel_values"]
    found = family.pixel_values(load_processor(tmp_path / "model" / "manifest.json"), [picture], None)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def many_tokens(folder: Path) -> None:
    content = read_json(folder / "tokenizer.json")
    first, model = 1 + max(token["id"] for token in content["added_tokens"]), content["added_tokens"][-1]
    content["added_tokens"] += [{**model, "id": first + index, "content": f"<|x{index}|>"} for index in range(500)]
    write_json(folder / "tokenizer.json", content)


def changed(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", **changes)


def no_sizes(folder: Path) -> None:
    content = read_json(folder / "config.json")
    write_json(folder / "config.json", {key: value for key, value in content.items() if key != "hidden_size"})


BROKEN: list[tuple[Callable[[Path], None], str]] = [
    (drop, r"1 missing tensor \(multi_modal_projector.linear_2.bias\)"),
    (newline, r"1 unexpected tensor \(language_model.model.image_newline\)"),
    (fewer_rows, r"1 misshapen tensor \(language_model.lm_head.weight"),
    (truncate, "cut off|speaks of"),
    (other_family, "wrong family: .*InternVLChatModel"),
    (linear, "unsupported model: mm_projector_type is linear"),
    (anyres, "unsupported model: image_aspect_ratio is anyres"),
    (many_tokens, r"it has \d+ tokens, the embedding table \d+ rows"),
    (changed(mm_vision_select_layer="a"), "no hidden state a in a vision tower"),
    (changed(mm_vision_select_layer=1), "no hidden state 1 in a vision tower"),
    (changed(mm_vision_select_feature=["patch"]), "mm_vision_select_feature is"),
    (changed(hidden_size="x"), "broken configuration"),
    (changed(num_attention_heads=0), "broken configuration"),
    (changed(hidden_act="martian"), "broken configuration"),
    (changed(rope_scaling={"type": "martian"}), "broken configuration"),
    (changed(rope_scaling="x"), "broken configuration"),
    (changed(quantization_config={"quant_method": "awq"}), "quantised model: .*awq"),
    (no_sizes, "broken configuration: there is no hidden_size"),
]


@pytest.mark.parametrize(("spoil", "message"), BROKEN)
def test_a_broken_one(spoil: Callable[[Path], None], message: str, twin: tuple[Path, Path], tmp_path: Path) -> None:
    source, vision = twin
    spoil(source)
    with pytest.raises(UserError, match=message) as caught:
        native(source, tmp_path / "model", vision=vision)
    assert str(source) in str(caught.value.problem.file)
    assert not (tmp_path / "model").exists()


def test_a_tower_that_is_missing_or_another(twin: tuple[Path, Path], tmp_path: Path) -> None:
    source, _ = twin
    with pytest.raises(UserError, match="missing part: the checkpoint does not hold the vision tower") as caught:
        native(source, tmp_path / "model")
    assert caught.value.problem.field == "vision"
    other = tmp_path / "other"
    sizes = {"hidden_size": 48, "intermediate_size": 64, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    config = CLIPVisionConfig(**sizes, num_hidden_layers=3)
    CLIPVisionModel(config).save_pretrained(other)
    with pytest.raises(UserError, match="the vision tower has 48 features, the projector takes 32"):
        native(source, tmp_path / "model", vision=other)
    with pytest.raises(UserError, match="a tower of type 'dinov2'"):
        write_json(other / "config.json", {"model_type": "dinov2"})
        native(source, tmp_path / "model", vision=other)


def test_a_model_directory_of_another_family_or_incomplete(twin: tuple[Path, Path], tmp_path: Path) -> None:
    source, vision = twin
    native(source, tmp_path / "model", vision=vision)
    tensors = values(tmp_path / "model")
    del tensors["vision_tower.vision_model.embeddings.class_embedding"]
    write_weights(tensors, tmp_path / "model", 1)
    with pytest.raises(UserError, match=r"missing tensor \(vision_tower.vision_model.embeddings.class_embedding\)"):
        official(tmp_path / "model", tmp_path / "back")
    edit(tmp_path / "model" / "config.json", model_type="internvl")
    with pytest.raises(UserError, match="wrong family: internvl"):
        official(tmp_path / "model", tmp_path / "back")
    assert not (tmp_path / "back").exists()
