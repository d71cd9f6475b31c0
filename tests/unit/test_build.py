"""Base models from parts and from checkpoints in transformers' own layout: values, small files, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPConfig,
    CLIPModel,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from conftest import make_tiny_model, tiny_tokenizer
from official import make_llava_parts, make_official, write_weights
from official_tokenizer import write_tokenizer
from reference import embed as embed_tokens
from reference import language_logits, official_tensors
from vlmflow.errors import UserError
from vlmflow.files import read_json, write_json
from vlmflow.models.build import build_model
from vlmflow.models.directory import load_processor
from vlmflow.models.families import llava as family
from vlmflow.models.template import PLACEHOLDER
from vlmflow.weights.checkpoint import Checkpoint

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SEEING = {**SMALL, "num_hidden_layers": 3, "image_size": 28, "patch_size": 14}
NODE = {"family": "llava", "template": None, "image_size": None, "feature_layer": -2, "max_tiles": None,
        "dtype": None, "seed": 0}  # fmt: skip
LANGUAGES = {
    "llama": (LlamaConfig, "vicuna", {"num_key_value_heads": 1}),
    "mistral": (MistralConfig, "vicuna", {"num_key_value_heads": 1}),
    "qwen2": (Qwen2Config, "chatml", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "phi3": (Phi3Config, "phi3", {"num_key_value_heads": 1}),
}
IDS = torch.tensor([[3, 7, 20, 100, 9, 11, 4, 15]])


def make_language(folder: Path, name: str, dtype: torch.dtype = torch.float32) -> Path:
    """A random language model in ``folder`` as transformers saves it, with the tokenizer of its kind."""
    kind, _, more = LANGUAGES[name]
    folder.mkdir(parents=True)
    special = write_tokenizer(folder, "llama" if name == "mistral" else name, 10_000.0, pictures=False)
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(kind(**SMALL, **special, **more))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.to(dtype).save_pretrained(folder)
    return folder


def make_vision(folder: Path, name: str) -> Path:
    torch.manual_seed(2)
    models: dict[str, Callable[[], Any]] = {
        "clip": lambda: CLIPModel(CLIPConfig(vision_config=SEEING, text_config={**SMALL, "vocab_size": 32})),
        "clip_vision": lambda: CLIPVisionModel(CLIPConfig(vision_config=SEEING).vision_config),
        "siglip": lambda: SiglipModel(SiglipConfig(vision_config=SEEING, text_config={**SMALL, "vocab_size": 32})),
        "siglip_vision": lambda: SiglipVisionModel(SiglipVisionConfig(**SEEING)),
        "dinov2": lambda: Dinov2Model(Dinov2Config(**{**SEEING, "mlp_ratio": 2})),
    }
    models[name]().save_pretrained(folder)
    return folder


def build(output: Path, **node: Any) -> Path:
    places = {key: str(value) if isinstance(value, Path) else value for key, value in node.items()}
    build_model({**NODE, **places}, output / "manifest.json")
    return output


def loaded(folder: Path) -> Any:
    model, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


def values(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = Checkpoint(folder)
    return {name: checkpoint.read(name) for name in checkpoint.kinds}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def to_bin(folder: Path, shards: int) -> None:
    """Store the weights in PyTorch's format instead, with the buffers that old releases stored."""
    tensors = values(folder)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    (folder / "model.safetensors").unlink()
    names, index = sorted(tensors), {}
    for shard in range(shards):
        file = "pytorch_model.bin" if shards == 1 else f"pytorch_model-{shard + 1:05d}-of-{shards:05d}.bin"
        torch.save({name: tensors[name] for name in names[shard::shards]}, folder / file)
        index |= dict.fromkeys(names[shard::shards], file)
    if shards > 1:
        write_json(folder / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": index})


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_vision(tmp_path_factory.mktemp("vision") / "clip", "clip")


@pytest.fixture(scope="module")
def vicuna(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_language(tmp_path_factory.mktemp("language") / "vicuna", "llama")


@pytest.mark.parametrize("name", LANGUAGES)
@pytest.mark.parametrize("stored", ["safetensors", "shards", "bin", "bin shards"])
@torch.no_grad()
def test_a_language_model_says_what_it_said(name: str, stored: str, clip: Path, tmp_path: Path) -> None:
    language = make_language(tmp_path / "language", name)
    original = AutoModelForCausalLM.from_pretrained(language).eval()
    if stored.startswith("bin"):
        to_bin(language, 2 if stored == "bin shards" else 1)
    elif stored == "shards":
        tensors = values(language)
        (language / "model.safetensors").unlink()
        write_weights(tensors, language, 3)
    template = LANGUAGES[name][1]
    model = loaded(build(tmp_path / "model", language=language, vision=clip, template=template))
    rows = original.config.vocab_size
    torch.testing.assert_close(model(input_ids=IDS).logits[..., :rows], original(input_ids=IDS).logits, rtol=0, atol=0)
    assert model.config.text_config.model_type == original.config.model_type
    assert model.config.tie_word_embeddings == model.config.text_config.tie_word_embeddings == (name == "qwen2")


@pytest.mark.parametrize("name", ["llava-internlm2-chat-1.8b", "llava-internlm2-chat-20b"])
@torch.no_grad()
def test_internlm2_becomes_a_llama(name: str, tmp_path: Path) -> None:
    language, vision = make_llava_parts(tmp_path, name, dtype=torch.float32)
    folder = build(tmp_path / "model", language=language, vision=vision)
    config, tensors = read_json(language / "config.json"), official_tensors(language)
    expected = language_logits(tensors, config, embed_tokens(tensors, config, IDS))
    found = loaded(folder)(input_ids=IDS).logits[..., : config["vocab_size"]]
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert read_json(folder / "config.json")["text_config"]["architectures"] == ["LlamaForCausalLM"]
    assert read_json(folder / "manifest.json")["template"] == "internlm2-chat"


@pytest.mark.parametrize("name", ["clip", "clip_vision", "siglip", "siglip_vision", "dinov2"])
@torch.no_grad()
def test_a_tower_sees_what_it_saw(name: str, vicuna: Path, tmp_path: Path) -> None:
    vision = make_vision(tmp_path / "vision", name)
    folder = build(tmp_path / "model", language=vicuna, vision=vision, template="vicuna")
    model = loaded(folder)
    original = {"clip": CLIPVisionModel, "siglip": SiglipVisionModel, "dinov2": Dinov2Model}[name.split("_")[0]]
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    hidden = original.from_pretrained(vision).eval()(pixels, output_hidden_states=True).hidden_states[-2]
    patches = hidden if name.startswith("siglip") else hidden[:, 1:]
    expected = model.model.multi_modal_projector(patches)
    found = torch.stack(list(model.model.get_image_features(pixels).pooler_output))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    processor = load_processor(folder / "manifest.json")
    assert family.tile_tokens(processor) == patches.shape[1] == 4
    means = {"clip": 0.48145466, "siglip": 0.5, "dinov2": 0.485}
    assert processor.image_processor.image_mean[0] == means[name.split("_")[0]]
    assert processor.vision_feature_select_strategy == ("full" if "siglip" in name else "default")


def test_names_of_towers_are_those_that_lmdeploy_reads(vicuna: Path, clip: Path, tmp_path: Path) -> None:
    folder = build(tmp_path / "model", language=vicuna, vision=clip, template="vicuna")
    names = {name for name in Checkpoint(folder).kinds if name.startswith("vision_tower.")}
    assert names and all(name.startswith("vision_tower.vision_model.") for name in names)
    assert not any("text_model" in name or name.endswith("position_ids") for name in names)


def test_published_names_of_dinov2(vicuna: Path, tmp_path: Path) -> None:
    vision = make_vision(tmp_path / "vision", "dinov2")
    one = values(build(tmp_path / "one", language=vicuna, vision=vision, template="vicuna"))
    published = {
        "attention.q_proj": "attention.attention.query",
        "attention.k_proj": "attention.attention.key",
        "attention.v_proj": "attention.attention.value",
        "attention.o_proj": "attention.output.dense",
    }
    tensors = {}
    for key, value in values(vision).items():
        name = key
        for new, old in published.items():
            name = name.replace(new, old)
        tensors[name] = value
    assert any("attention.attention.query" in name for name in tensors)
    write_weights(tensors, vision, 1)
    assert equal(one, values(build(tmp_path / "two", language=vicuna, vision=vision, template="vicuna")))


@torch.no_grad()
def test_dinov2_for_larger_pictures(vicuna: Path, tmp_path: Path) -> None:
    vision = make_vision(tmp_path / "vision", "dinov2")
    model = loaded(build(tmp_path / "model", language=vicuna, vision=vision, template="vicuna", image_size=56))
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    expected = Dinov2Model.from_pretrained(vision).eval()(pixels).last_hidden_state
    found = model.model.vision_tower(pixels).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert model.config.vision_config.image_size == 56


@pytest.mark.parametrize("tie", [True, False])
def test_the_placeholder_gets_the_mean_of_the_others(tie: bool, tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path, tie=tie).parent
    before, after = values(tmp_path / "language"), values(folder)
    tables = ["model.embed_tokens.weight"] + ["lm_head.weight"] * (not tie)
    for name in tables:
        table, old = after[f"language_model.{name}"], before[name]
        assert len(table) == 320 and torch.equal(table[: len(old)], old)
        assert torch.equal(table[len(old) :], old.mean(0).expand(320 - len(old), -1))
    assert ("language_model.lm_head.weight" in after) is not tie
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    config = AutoConfig.from_pretrained(folder)
    assert processor.tokenizer.convert_tokens_to_ids(PLACEHOLDER) == config.image_token_index == config.pad_token_id
    assert config.text_config.pad_token_id == processor.tokenizer.pad_token_id != config.image_token_index


@pytest.mark.parametrize(
    ("tie", "first"),
    [(True, [-0.091670908, -0.0839788169, -0.126341268]), (False, [-0.0297160558, 0.171066076, 0.133313298])],
)
def test_a_seed_means_the_projector_that_it_always_meant(tie: bool, first: list[float], tmp_path: Path) -> None:
    """Values of the version before models were built tensor by tensor."""
    weight = values(make_tiny_model(tmp_path, tie=tie).parent)["multi_modal_projector.linear_1.weight"]
    torch.testing.assert_close(weight[0, :3], torch.tensor(first), rtol=1e-6, atol=0)


def test_number_formats(clip: Path, tmp_path: Path) -> None:
    language = make_language(tmp_path / "language", "llama", torch.bfloat16)
    kept = build(tmp_path / "kept", language=language, vision=clip, template="vicuna")
    assert {kind.dtype for kind in Checkpoint(kept).kinds.values()} == {torch.bfloat16}
    asked = build(tmp_path / "asked", language=language, vision=clip, template="vicuna", dtype="float16")
    assert {kind.dtype for kind in Checkpoint(asked).kinds.values()} == {torch.float16}
    config = read_json(asked / "config.json")
    assert [config["dtype"], config["text_config"]["dtype"], config["vision_config"]["dtype"]] == ["float16"] * 3


def test_generation_ends_with_the_turn(clip: Path, tmp_path: Path) -> None:
    language = make_language(tmp_path / "language", "qwen2")
    write_json(language / "generation_config.json", {"temperature": 0.9, "top_p": 0.6, "max_length": 4096})
    folder = build(tmp_path / "model", language=language, vision=clip)
    written, tokenizer = (
        read_json(folder / "generation_config.json"),
        load_processor(folder / "manifest.json").tokenizer,
    )
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in written["eos_token_id"]
    assert written["pad_token_id"] == tokenizer.pad_token_id and "temperature" not in written


def test_nothing_of_this_machine_or_of_remote_code_is_written(tmp_path: Path) -> None:
    language, vision = make_llava_parts(tmp_path, "llava-phi-3-mini")
    folder = build(tmp_path / "model", language=language, vision=vision)
    for file in folder.glob("*.json"):
        if file.name not in ("provenance.json", "manifest.json"):
            text = file.read_text(encoding="utf-8")
            assert str(tmp_path) not in text and "auto_map" not in text, file
    assert read_json(folder / "manifest.json")["template"] == "phi3"


def test_a_tied_model_that_stores_another_output_matrix(clip: Path, tmp_path: Path) -> None:
    language = make_language(tmp_path / "language", "qwen2")
    tensors = values(language)
    same = tensors["model.embed_tokens.weight"]
    write_weights({**tensors, "lm_head.weight": same.clone()}, language, 1)
    assert "language_model.lm_head.weight" not in values(build(tmp_path / "a", language=language, vision=clip))
    write_weights({**tensors, "lm_head.weight": same + 1}, language, 1)
    made = values(build(tmp_path / "b", language=language, vision=clip))
    assert torch.equal(made["language_model.lm_head.weight"][: len(same)], same + 1)
    assert read_json(tmp_path / "b" / "config.json")["tie_word_embeddings"] is False


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
