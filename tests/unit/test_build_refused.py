"""Parts that cannot become a model, and towers whose own settings count."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from llava_parts import SEEING, build, loaded, make_language, values
from official import make_official, write_weights
from vlmflow.errors import UserError
from vlmflow.files import read_json, write_json
from vlmflow.models.directory import load_processor

Spoil = Callable[[Path, Path], object]


def edit(file: Path, **changes: Any) -> None:
    write_json(file, {**read_json(file), **changes})


def language_with(**changes: Any) -> Spoil:
    return lambda language, _: edit(language / "config.json", **changes)


def vision_with(**changes: Any) -> Spoil:
    def spoil(_: Path, vision: Path) -> None:
        half = read_json(vision / "config.json")["vision_config"]
        edit(vision / "config.json", vision_config={**half, **changes})

    return spoil


def pictures_with(**changes: Any) -> Spoil:
    return lambda _, vision: write_json(vision / "preprocessor_config.json", changes)


def quantised_table(language: Path, _: Path) -> None:
    tensors = values(language)
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].to(torch.int8)
    write_weights(tensors, language, 1)


def no_table(language: Path, _: Path) -> None:
    tensors = values(language)
    del tensors["model.embed_tokens.weight"]
    write_weights(tensors, language, 1)


def fewer_rows(language: Path, _: Path) -> None:
    rows = read_json(language / "config.json")["vocab_size"] - 150
    edit(language / "config.json", vocab_size=rows)
    names = ("model.embed_tokens.weight", "lm_head.weight")
    write_weights({k: v[:rows].clone() if k in names else v for k, v in values(language).items()}, language, 1)


BROKEN: list[tuple[str, Spoil, str]] = [
    ("language", language_with(hidden_size="x"), "broken configuration"),
    ("language", language_with(hidden_size=64), "the tensors do not fit"),
    ("language", language_with(num_attention_heads=0), "broken configuration"),
    ("language", language_with(hidden_act="martian"), "broken configuration"),
    ("language", language_with(rope_parameters={"rope_type": "martian"}), "broken configuration"),
    ("language", language_with(model_type=["llama"]), "transformers has no model of type"),
    ("language", language_with(quantization_config={"quant_method": "gptq", "bits": 4}), "quantised model: .*gptq"),
    ("language", lambda language, _: write_json(language / "config.json", 5), "no JSON object"),
    ("language", lambda language, _: write_json(language / "generation_config.json", [1]), "no JSON object"),
    (
        "language",
        lambda language, _: write_json(language / "generation_config.json", {"max_new_tokens": 0}),
        "broken gen",
    ),
    ("language", quantised_table, "quantised tensor model.embed_tokens.weight"),
    ("language", no_table, "missing tensor model.embed_tokens.weight"),
    ("language", fewer_rows, r"it has \d+ tokens, the embedding table \d+ rows"),
    ("vision", vision_with(hidden_size="x"), "broken configuration"),
    ("vision", vision_with(hidden_size=64), "the tensors do not fit"),
    ("vision", vision_with(hidden_act="martian"), "broken configuration"),
    ("vision", vision_with(patch_size=0), "broken configuration"),
    ("vision", pictures_with(image_mean=[0.5]), "not three numbers"),
    ("vision", pictures_with(image_std=[0.5, 0.5, 0.0]), "broken settings of pictures"),
    ("vision", pictures_with(resample="x"), "broken settings of pictures"),
]


@pytest.mark.parametrize(("part", "spoil", "message"), BROKEN)
def test_broken_parts(part: str, spoil: Spoil, message: str, vicuna: Path, clip: Path, tmp_path: Path) -> None:
    parts = {name: Path(shutil.copytree(place, tmp_path / name)) for name, place in
             (("language", vicuna), ("vision", clip))}  # fmt: skip
    spoil(parts["language"], parts["vision"])
    with pytest.raises(UserError, match=message) as caught:
        build(tmp_path / "model", **parts, template="vicuna")
    assert str(parts[part]) in str(caught.value.problem.file)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(("part", "name"), [("language", "x.gguf"), ("vision", "x.onnx")])
@pytest.mark.parametrize("content", [b"", b"garbage" * 20])
def test_single_files_that_are_none(
    part: str, name: str, content: bytes, vicuna: Path, clip: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="not a") as caught:
        build(tmp_path / "model", **{"language": vicuna, "vision": clip, part: tmp_path / name}, template="vicuna")
    assert caught.value.problem.file == tmp_path / name


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"feature_layer": 1}, "no hidden state 1 in a vision tower"),
        ({"image_size": 0}, "no multiple of the tower's patch size"),
        ({"max_tiles": 4}, "a LLaVA sees a picture as one tile"),
        ({"checkpoint": True, "language": None, "vision": None, "image_size": 28}, "unused setting"),
        ({"checkpoint": True, "vision": None}, "a complete checkpoint holds its language model"),
        ({"checkpoint": True, "language": None}, "holds its tower"),
        ({"checkpoint": Path("config.json"), "language": None, "vision": None}, "a file, not a folder"),
    ],
)
def test_settings_without_use(changed: dict[str, Any], message: str, vicuna: Path, clip: Path, tmp_path: Path) -> None:
    node = {"language": vicuna, "vision": clip, "template": "vicuna"}
    whole = build(tmp_path / "whole", **node)
    place = {True: whole, Path("config.json"): whole / "config.json"}
    node |= changed | ({"checkpoint": place[changed["checkpoint"]]} if "checkpoint" in changed else {})
    with pytest.raises(UserError, match=message):
        build(tmp_path / "model", **node)


def test_a_tower_with_code_of_its_own(vicuna: Path, tmp_path: Path) -> None:
    source = make_official("internvl2-2b", tmp_path / "source")
    with pytest.raises(UserError, match="no model of type 'internvl_chat'") as caught:
        build(tmp_path / "model", language=vicuna, vision=source, template="vicuna")
    assert "trust_remote_code" not in str(caught.value)


def test_the_settings_of_a_towers_own_pictures(vicuna: Path, clip: Path, tmp_path: Path) -> None:
    vision = Path(shutil.copytree(clip, tmp_path / "vision"))
    own = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.9, 0.8, 0.7], "resample": 2}
    write_json(vision / "preprocessor_config.json", {**own, "do_center_crop": True})
    folder = build(tmp_path / "model", language=vicuna, vision=vision, template="vicuna")
    found = load_processor(folder / "manifest.json").image_processor
    assert [list(found.image_mean), list(found.image_std), found.resample] == list(own.values())
    assert found.do_pad and not found.do_center_crop


@torch.no_grad()
def test_dinov2_with_other_patches(vicuna: Path, tmp_path: Path) -> None:
    torch.manual_seed(2)
    config = Dinov2Config(**{**SEEING, "mlp_ratio": 2, "patch_size": 7})
    Dinov2Model(config).save_pretrained(tmp_path / "vision")
    model = loaded(build(tmp_path / "model", language=vicuna, vision=tmp_path / "vision", template="vicuna",
                         image_size=56))  # fmt: skip
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    expected = Dinov2Model.from_pretrained(tmp_path / "vision").eval()(pixels).last_hidden_state
    found = model.model.vision_tower(pixels).last_hidden_state
    assert found.shape[1] == 1 + 64
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_settings_of_beams_without_beams(clip: Path, tmp_path: Path) -> None:
    language = make_language(tmp_path / "language", "qwen2")
    write_json(language / "generation_config.json", {"length_penalty": 2.0, "do_sample": False, "temperature": 0.3})
    folder = build(tmp_path / "model", language=language, vision=clip)
    assert not {"length_penalty", "temperature"} & read_json(folder / "generation_config.json").keys()
