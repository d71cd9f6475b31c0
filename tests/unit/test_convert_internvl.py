"""Official InternVL directories to model directories and back: values, small files, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer, GenerationConfig

from official import make_official, write_weights
from reference import reference_logits
from vlmflow.convert.internvl import OFFICIAL, to_native, to_official
from vlmflow.errors import UserError
from vlmflow.files import read_json, staged_directory, write_json
from vlmflow.models.families import internvl as family
from vlmflow.models.published import published, published_names
from vlmflow.weights.checkpoint import Checkpoint

NAMES = [name for name in published_names() if published(name).family == "internvl"]
INT8 = "internvl-chat-v1.5-int8"
SMALL = "internvl2-2b"


def native(source: Path, output: Path, **options: Any) -> dict[str, Any]:
    with staged_directory(output) as folder:
        return to_native(source, folder, **options)


def official(model: Path, output: Path, **options: Any) -> dict[str, Any]:
    with staged_directory(output) as folder:
        return to_official(model, folder, **options)


def values(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = Checkpoint(folder)
    return {name: checkpoint.read(name) for name in checkpoint.kinds}


def edit(file: Path, **changes: Any) -> None:
    """Set keys of a JSON file; a dot leads into an object, None removes."""
    content = read_json(file)
    for key, value in changes.items():
        *parents, last = key.split("__")
        place = content
        for parent in parents:
            place = place[parent]
        place.pop(last, None)
        if value is not None:
            place[last] = value
    write_json(file, content)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_official(SMALL, tmp_path_factory.mktemp("official") / "source", dtype=torch.float32)


@pytest.fixture
def source(twin: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(twin, tmp_path / "source")


@pytest.mark.parametrize("name", NAMES)
def test_there_and_back_bit_by_bit(name: str, tmp_path: Path) -> None:
    source = make_official(name, tmp_path / "source", shards=2)
    facts = native(source, tmp_path / "model", max_shard_bytes=200_000)
    back = official(tmp_path / "model", tmp_path / "back")
    stored, dtype = values(source), torch.bfloat16
    expected = {name: value for name, value in stored.items() if not name.endswith((".SCB", ".weight_format"))}
    for key in [key for key, value in expected.items() if value.dtype == torch.int8]:
        scale = stored[key.removesuffix("weight") + "SCB"]
        expected[key] = (expected[key].float() * scale[:, None] * 7.874015718698502e-3).to(dtype)
    assert equal(values(tmp_path / "back"), expected)
    assert facts["template"] == published(name).template
    assert facts["tensors"] == len(Checkpoint(tmp_path / "model").kinds) and back["tensors"] == len(expected)
    assert facts["parameters"] == back["parameters"] == sum(value.numel() for value in expected.values())
    assert (facts["dequantised"] > 0) == back["quantization_removed"] == (name == INT8)
    kept = {file.name for file in source.iterdir() if "safetensors" not in file.name}
    assert {file.name for file in (tmp_path / "model" / OFFICIAL).iterdir()} == kept
    for file in kept - ({"config.json"} if name == INT8 else set()):
        assert (tmp_path / "back" / file).read_bytes() == (source / file).read_bytes()
    assert "quantization_config" not in read_json(tmp_path / "back" / "config.json")


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_same_logits(name: str, tmp_path: Path) -> None:
    source = make_official(name, tmp_path / "source", dtype=torch.float32)
    native(source, tmp_path / "model")
    model, report = AutoModelForImageTextToText.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(report.values())
    picture = model.config.image_token_id
    ids = torch.tensor([[3, 7, *[picture] * 8, 9, 11, 4, 15]])
    pixels = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    found = model.eval()(input_ids=ids, pixel_values=pixels).logits
    expected = reference_logits(source, ids, pixels)
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_the_small_files(twin: Path, tmp_path: Path) -> None:
    facts = native(twin, tmp_path / "model", max_tiles=6)
    config = read_json(tmp_path / "model" / "config.json")
    assert config["architectures"] == ["InternVLForConditionalGeneration"]
    assert config["text_config"]["architectures"] == ["LlamaForCausalLM"]
    assert config["tie_word_embeddings"] is False
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    added = read_json(twin / "added_tokens.json")
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in added} == added
    assert config["image_token_id"] == tokenizer.context_image_token_id == added["<IMG_CONTEXT>"]
    assert (tokenizer.start_image_token, tokenizer.end_image_token) == ("<img>", "</img>")
    assert tokenizer.video_token == "<video>" and tokenizer.chat_template
    ends = GenerationConfig.from_pretrained(tmp_path / "model").eos_token_id
    assert added["<|im_end|>"] in ends
    pictures = AutoImageProcessor.from_pretrained(tmp_path / "model", backend="pil")
    assert (pictures.min_patches, pictures.max_patches, pictures.resample) == (1, 6, 3)
    assert facts["max_tiles"] == 6
    assert tuple(pictures.image_mean) == (0.485, 0.456, 0.406)
    processor = family.load_processor(tmp_path / "model")
    assert processor.image_seq_length == 4 and processor.image_processor.size["height"] == 56
    names = read_json(tmp_path / "model" / "processor_config.json")
    assert names["processor_class"] == "InternVLProcessor"
    assert names["video_processor"]["video_processor_type"] == "InternVLVideoProcessor"


def test_another_number_format(twin: Path, tmp_path: Path) -> None:
    native(twin, tmp_path / "model", dtype=torch.float16)
    assert {value.dtype for value in values(tmp_path / "model").values()} == {torch.float16}
    config = read_json(tmp_path / "model" / "config.json")
    assert [config["dtype"], config["text_config"]["dtype"], config["vision_config"]["dtype"]] == ["float16"] * 3
    official(tmp_path / "model", tmp_path / "back", dtype=torch.bfloat16)
    assert {value.dtype for value in values(tmp_path / "back").values()} == {torch.bfloat16}
    config = read_json(tmp_path / "back" / "config.json")
    assert config["torch_dtype"] == config["llm_config"]["torch_dtype"] == "bfloat16"


def drop(folder: Path) -> None:
    tensors = values(folder)
    del tensors["language_model.model.layers.1.attention.wo.weight"]
    write_weights(tensors, folder, 1)


def add(folder: Path) -> None:
    write_weights({**values(folder), "language_model.model.layers.0.attention.wx.weight": torch.ones(2)}, folder, 1)


def reshape(folder: Path) -> None:
    tensors = values(folder)
    write_weights({**tensors, "mlp1.3.weight": tensors["mlp1.3.weight"][:-1]}, folder, 1)


def fewer_heads(folder: Path) -> None:
    tensors = values(folder)
    name = "language_model.model.layers.1.attention.wqkv.weight"
    write_weights({**tensors, name: tensors[name][:-1]}, folder, 1)


def extra_layer(folder: Path) -> None:
    tensors = values(folder)
    more = {name.replace("layers.1.", "layers.2."): value.clone() for name, value in tensors.items() if ".1." in name}
    write_weights({**tensors, **more}, folder, 1)


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def lie(folder: Path) -> None:
    tensors = values(folder)
    (folder / "model.safetensors").unlink()
    write_weights(tensors, folder, 2)
    index = read_json(folder / "model.safetensors.index.json")
    index["weight_map"]["mlp1.9.weight"] = "model-00001-of-00002.safetensors"
    write_json(folder / "model.safetensors.index.json", index)


def lose_shard(folder: Path) -> None:
    tensors = values(folder)
    (folder / "model.safetensors").unlink()
    write_weights(tensors, folder, 2)
    (folder / "model-00002-of-00002.safetensors").unlink()


def other_family(folder: Path) -> None:
    write_json(folder / "config.json", {"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"]})


def other_weights(folder: Path) -> None:
    edit(folder / "config.json", llm_config__architectures=["Qwen2ForCausalLM"])


WEIGHTS: list[tuple[Callable[[Path], None], str]] = [
    (drop, r"1 missing tensor \(language_model.model.layers.1.self_attn.o_proj.weight\)"),
    (add, r"1 unexpected tensor \(language_model.model.layers.0.attention.wx.weight\)"),
    (reshape, r"1 misshapen tensor \(multi_modal_projector.linear_2.weight \[63, 64\] instead of \[64, 64\]"),
    (fewer_heads, r"misshapen tensor: queries, keys and values"),
    (extra_layer, r"unexpected tensors \(.*\.2\."),
    (truncate, r"model.safetensors: .*header"),
    (lie, r"index.json: the index says that mlp1.9.weight"),
    (lose_shard, r"model-00002-of-00002.safetensors: a file that the index names is missing"),
    (other_family, r"config.json, field model_type: wrong family: llava"),
    (other_weights, r"missing tensor|unexpected tensor"),
]


@pytest.mark.parametrize(("damage", "message"), WEIGHTS, ids=[damage.__name__ for damage, _ in WEIGHTS])
def test_refused_and_nothing_written(
    damage: Callable[[Path], None], message: str, source: Path, tmp_path: Path
) -> None:
    damage(source)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message) as raised:
        to_native(source, tmp_path / "empty")
    assert str(source) in str(raised.value)
    assert not list((tmp_path / "empty").iterdir())


def test_a_picture_without_tiles(source: Path, tmp_path: Path) -> None:
    edit(source / "config.json", dynamic_image_size=False, use_thumbnail=None)
    with pytest.raises(UserError, match=r"config.json, field max_tiles: .*6 tiles .*\n.*leave max_tiles out"):
        native(source, tmp_path / "model", max_tiles=6)
    native(source, tmp_path / "model")
    assert family.load_processor(tmp_path / "model").image_processor.max_patches == 1
    official(tmp_path / "model", tmp_path / "back")
    assert (tmp_path / "back" / "config.json").read_bytes() == (source / "config.json").read_bytes()


@pytest.mark.parametrize("head", [False, True])
def test_tied_embeddings(head: bool, tmp_path: Path) -> None:
    """A tied checkpoint has no output matrix; one that is stored counts, whatever the configuration says."""
    source = make_official("internvl2-1b", tmp_path / "source")
    edit(source / "config.json", llm_config__tie_word_embeddings=True)
    tensors = values(source)
    if not head:
        del tensors["language_model.lm_head.weight"]
        write_weights(tensors, source, 1)
    native(source, tmp_path / "model")
    assert read_json(tmp_path / "model" / "config.json")["tie_word_embeddings"] is not head
    model, report = AutoModelForImageTextToText.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(report.values())
    assert (model.lm_head.weight is model.get_input_embeddings().weight) is not head
    official(tmp_path / "model", tmp_path / "back")
    assert equal(values(tmp_path / "back"), tensors)


def test_official_files_kept_elsewhere(twin: Path, tmp_path: Path) -> None:
    native(twin, tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / OFFICIAL)
    with pytest.raises(UserError, match="name the official directory"):
        official(tmp_path / "model", tmp_path / "back")
    official(tmp_path / "model", tmp_path / "back", official_files=twin)
    assert equal(values(tmp_path / "back"), values(twin))


def test_official_files_of_another_model(twin: Path, source: Path, tmp_path: Path) -> None:
    native(twin, tmp_path / "model")
    edit(source / "config.json", llm_config__rope_theta=10_000)
    with pytest.raises(UserError, match=r"differs from its official files in text_config.rope_parameters"):
        official(tmp_path / "model", tmp_path / "back", official_files=source)
    assert not (tmp_path / "back").exists()


def test_a_model_directory_that_lacks_a_tensor(twin: Path, tmp_path: Path) -> None:
    native(twin, tmp_path / "model")
    tensors = values(tmp_path / "model")
    del tensors["vision_tower.encoder.layer.0.attention.k_proj.weight"], tensors["vision_tower.embeddings.cls_token"]
    write_weights(tensors, tmp_path / "model", 1)
    with pytest.raises(UserError, match=r"missing tensor \(vision_tower.encoder.layer.0.attention.k_proj.weight\)"):
        official(tmp_path / "model", tmp_path / "back")


def test_files_are_json_of_this_machine_only(twin: Path, tmp_path: Path) -> None:
    """No path of the machine and no remote code gets into what is written, outside official/."""
    native(twin, tmp_path / "model")
    for file in (tmp_path / "model").glob("*.json"):
        text = file.read_text(encoding="utf-8")
        assert str(tmp_path) not in text and "auto_map" not in text, file
        json.loads(text)
    assert not list((tmp_path / "model").glob("*.py"))
