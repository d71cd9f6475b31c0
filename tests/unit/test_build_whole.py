"""Checkpoints in transformers' own layout are checked and copied; what cannot be built is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from conftest import tiny_tokenizer
from llava_parts import (
    build,
    equal,
    loaded,
    make_language,
    values,
)
from official import make_official, write_weights
from vlmflow.errors import UserError
from vlmflow.files import read_json, write_json
from vlmflow.models.directory import load_processor
from vlmflow.models.families import llava as family
from vlmflow.weights.checkpoint import Checkpoint


@pytest.fixture(scope="module")
def whole(vicuna: Path, clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory, as one from elsewhere: without manifest."""
    folder = build(tmp_path_factory.mktemp("whole") / "model", language=vicuna, vision=clip, template="vicuna")
    (folder / "manifest.json").unlink()
    return folder


def test_a_checkpoint_in_transformers_layout_is_copied(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    hub = Path(shutil.copytree(whole, tmp_path / "hub" / "model"))
    old = {
        "language_model.model.": "model.language_model.",
        "language_model.": "",
        "vision_tower.vision_model.": "model.vision_tower.",
    }
    tensors = {}
    for name, value in values(whole).items():
        prefix = next((prefix for prefix in old if name.startswith(prefix)), "")
        tensors[old.get(prefix, "") + name.removeprefix(prefix)] = value
    assert "lm_head.weight" in tensors
    write_weights(tensors, hub, 1)
    copied = build(tmp_path / "copy", checkpoint=hub, template="vicuna")
    assert equal(values(copied), values(whole))
    loaded(copied)
    for file in ("processor_config.json", "chat_template.jinja", "config.json"):
        assert (copied / file).read_text() == (whole / file).read_text(), file


def test_processors_in_two_files(whole: Path, tmp_path: Path) -> None:
    """As llava-hf/llava-1.5-7b-hf has them, and pth_to_hf of XTuner: CLIP's own, which cuts out the middle."""
    hub = Path(shutil.copytree(whole, tmp_path / "hub"))
    content = read_json(hub / "processor_config.json")
    pictures = {**content.pop("image_processor"), "image_processor_type": "CLIPImageProcessor"}
    pictures |= {"size": {"shortest_edge": 28}, "do_center_crop": True, "crop_size": {"height": 28, "width": 28}}
    del pictures["do_pad"]
    write_json(hub / "processor_config.json", content)
    write_json(hub / "preprocessor_config.json", pictures)
    folder = build(tmp_path / "model", checkpoint=hub, template="vicuna")
    processor = load_processor(folder / "manifest.json")
    assert family.tile_tokens(processor) == 4 and processor.image_processor.do_center_crop
    picture = Image.new("RGB", (60, 30), "red")
    assert family.pixel_values(processor, [picture], None).shape == (1, 3, 28, 28)


def test_another_template_for_a_copy(whole: Path, tmp_path: Path) -> None:
    copied = build(tmp_path / "copy", checkpoint=whole, template="plain", dtype="bfloat16")
    assert read_json(copied / "manifest.json")["template"] == "plain"
    assert (copied / "chat_template.jinja").read_text() != (whole / "chat_template.jinja").read_text()
    assert {kind.dtype for kind in Checkpoint(copied).kinds.values()} == {torch.bfloat16}
    with pytest.raises(UserError, match="does not fit the tokenizer"):
        build(tmp_path / "other", checkpoint=whole, template="llama3")


def test_internvl_from_either_layout(tmp_path: Path) -> None:
    source = make_official("internvl2-2b", tmp_path / "source", dtype=torch.float32)
    native = build(tmp_path / "native", family="internvl", checkpoint=source, max_tiles=6)
    copied = build(tmp_path / "copied", family="internvl", checkpoint=native, max_tiles=4)
    assert equal(values(native), values(copied))
    assert read_json(copied / "manifest.json")["template"] == "internvl2"
    assert load_processor(copied / "manifest.json").image_processor.max_patches == 4
    assert (copied / "official" / "config.json").is_file()
    loaded(copied)


def drop_tensor(language: Path, _: Path) -> None:
    tensors = values(language)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    write_weights(tensors, language, 1)


def truncate(language: Path, _: Path) -> None:
    file = language / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def no_config(language: Path, _: Path) -> None:
    (language / "config.json").unlink()


def no_tokenizer(language: Path, _: Path) -> None:
    (language / "tokenizer.json").unlink()


def unknown(language: Path, _: Path) -> None:
    write_json(language / "config.json", {"model_type": "martian"})


def vision_as_language(language: Path, vision: Path) -> None:
    shutil.copyfile(vision / "config.json", language / "config.json")


def language_as_vision(language: Path, vision: Path) -> None:
    shutil.copyfile(language / "config.json", vision / "config.json")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop_tensor, r"1 missing tensor \(language_model.model.layers.1.mlp.up_proj.weight\)"),
        (truncate, "cut off|speaks of"),
        (no_config, "config.json is missing"),
        (no_tokenizer, "missing tokenizer"),
        (unknown, "no model of type 'martian'"),
        (vision_as_language, "'clip' is no language model"),
        (language_as_vision, "no vision tower of type 'llama'"),
    ],
)
def test_parts_that_do_not_fit(
    spoil: Callable[[Path, Path], None], message: str, vicuna: Path, clip: Path, tmp_path: Path
) -> None:
    language, vision = (Path(shutil.copytree(part, tmp_path / part.name)) for part in (vicuna, clip))
    spoil(language, vision)
    with pytest.raises(UserError, match=message):
        build(tmp_path / "model", language=language, vision=vision, template="vicuna")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"family": "gpt"}, "no model family 'gpt'"),
        ({"language": None}, "needs `language`"),
        ({"vision": Path("nowhere")}, "missing part: the vision is not there"),
        ({"template": "llama3"}, "does not fit the tokenizer"),
        ({"template": None}, "name the `template`: .*vicuna"),
        ({"feature_layer": -5}, "no hidden state -5 in a vision tower of 3 layers"),
        ({"image_size": 56}, "for DINOv2 towers only"),
        ({"image_size": 50}, "no multiple of the tower's patch size"),
        ({"family": "internvl"}, "needs `checkpoint`"),
    ],
)
def test_what_a_node_cannot_say(
    changed: dict[str, Any], message: str, vicuna: Path, clip: Path, tmp_path: Path
) -> None:
    node = {"language": vicuna, "vision": clip, "template": "vicuna", **changed}
    with pytest.raises(UserError, match=message):
        build(tmp_path / "model", **node)
    assert not (tmp_path / "model").exists()


def test_the_wrong_family(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="wrong family"):
        build(tmp_path / "model", family="internvl", checkpoint=whole)
    source = make_official("internvl2-2b", tmp_path / "source")
    with pytest.raises(UserError, match="wrong family"):
        build(tmp_path / "model", family="llava", checkpoint=source)


def test_own_templates(clip: Path, tmp_path: Path) -> None:
    for name, template in (("qwen2", "chatml"), ("phi3", "phi3")):
        folder = build(tmp_path / name / "model", language=make_language(tmp_path / name / "part", name), vision=clip)
        assert read_json(folder / "manifest.json")["template"] == template
    assert tiny_tokenizer().chat_template is None
