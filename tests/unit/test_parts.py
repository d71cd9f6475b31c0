"""What learns in each stage, and that it is written, found again and put where it belongs."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from safetensors.torch import load_file, save_file
from test_families import LANGUAGES as LANGUAGE_CONFIGS
from test_families import TOWERS, composed

from conftest import make_tiny_model
from vlmflow.errors import UserError
from vlmflow.evaluation.engines import Settings, Source
from vlmflow.evaluation.engines.transformers import TransformersEngine
from vlmflow.files import read_json, read_manifest, write_json, write_manifest
from vlmflow.models.directory import LANGUAGE, PROJECTOR, VISION, load_model
from vlmflow.models.families import family_of_model
from vlmflow.training.adapters import dequantise, dequantised_weights, load_base, lora_config, make_trainable
from vlmflow.training.artefact import save_weights, trained_weights
from vlmflow.training.options import FinetuneOptions, PretrainOptions
from vlmflow.training.parts import PARTS, load_parts, part_file, train_parts, unused_vision

Options = Callable[..., dict[str, Any]]
PREFIXES = {"projector": PROJECTOR, "vision": VISION, "language": (LANGUAGE, "lm_head")}
LORA = {"rank": 4, "alpha": 8, "dropout": 0.0, "variant": "lora", "vision_rank": 0, "vision_alpha": 16}
NF4 = {"type": "nf4", "double": True}


def pretraining(training: Options, *parts: str, **changed: Any) -> PretrainOptions:
    return PretrainOptions(**training(**changed), train=list(parts), calibrate=0)


def finetuning(training: Options, method: str = "lora", **changed: Any) -> FinetuneOptions:
    own = {key: changed.pop(key) for key in ("train_projector", "train_vision") if key in changed}
    lora, quantization = {**LORA, **changed.pop("lora", {})}, {**NF4, **changed.pop("quantization", {})}
    return FinetuneOptions(
        **training(**changed), method=method, projector_learning_rate=None, **{"train_projector": True, **own},
        lora=None if method == "full" else lora, quantization=quantization if method == "qlora" else None,
    )  # fmt: skip


def stage(
    model: Path, options: PretrainOptions | FinetuneOptions, folder: Path, pretrained: Path | None = None
) -> Path:
    """What a stage writes that learnt noise; returns its manifest."""
    network = load_base(model, options, pretrained)
    if isinstance(options, FinetuneOptions):
        network = make_trainable(network, options)
    else:
        network.requires_grad_(False)
        train_parts(network, options.train)
    generator = torch.Generator().manual_seed(len(folder.name))
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    folder.mkdir(parents=True)
    save_weights(trained_weights(network, options), network, folder, model, pretrained)
    write_json(folder / "provenance.json", {"config": asdict(options)})
    write_manifest(folder, base=read_manifest(model)["hash"])
    return folder / "manifest.json"


def learning(network: torch.nn.Module) -> set[str]:
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("parts", [("projector",), ("vision",), ("language",), PARTS], ids="-".join)
def test_pretraining_trains_the_chosen_parts_in_float32(
    tiny_model: Path, training: Options, parts: tuple[str, ...]
) -> None:
    options = pretraining(training, *parts, precision="bf16")
    network = load_base(tiny_model, options).requires_grad_(False)
    train_parts(network, options.train)
    chosen = {
        name for name, _ in network.named_parameters() for part in parts if name.startswith(PREFIXES[part])
    } - unused_vision(network.config)
    assert learning(network) == chosen
    formats = {name: parameter.dtype for name, parameter in network.named_parameters()}
    assert all(formats[name] == torch.float32 for name in chosen)
    assert all(
        formats[name] == torch.bfloat16 for name in formats if not any(name.startswith(PREFIXES[p]) for p in parts)
    )


@pytest.mark.parametrize(
    ("changed", "parts"),
    [
        ({}, ["language", "projector"]), ({"train_vision": True}, ["language", "projector", "vision"]),
        ({"train_projector": False}, ["language"]),
    ],
)  # fmt: skip
def test_full_fine_tuning_trains_the_chosen_parts(
    tiny_model: Path, training: Options, changed: dict[str, bool], parts: list[str]
) -> None:
    options = finetuning(training, "full", **changed)
    found = learning(make_trainable(load_base(tiny_model, options), options))
    assert [part for part in sorted(PREFIXES) if any(name.startswith(PREFIXES[part]) for name in found)] == parts


@pytest.mark.parametrize("method", ["lora", "qlora"])
@pytest.mark.parametrize("projector", [True, False])
def test_adapters_leave_the_rest_frozen(tiny_model: Path, training: Options, method: str, projector: bool) -> None:
    options = finetuning(training, method, train_projector=projector, lora={"vision_rank": 2})
    network = make_trainable(load_base(tiny_model, options), options)
    whole = {name for name in learning(network) if ".lora_" not in name}
    assert {PROJECTOR in name for name in whole} == ({True} if projector else set())
    adapted = {name for name in learning(network) if "lora_A" in name}
    assert not any("lm_head" in name or "embed" in name or "projector" in name for name in adapted)
    blocks = {match[1] for name in adapted if VISION in name and (match := re.search(r"layers\.(\d)\.", name))}
    assert blocks == {"0", "1"}, "the projector reads what goes into the third block"


@pytest.mark.parametrize("language", LANGUAGE_CONFIGS)
def test_no_name_of_an_output_matrix_is_a_target(language: str) -> None:
    """XTuner takes InternLM2's ``output`` for one of the hidden layers."""
    config = composed(LANGUAGE_CONFIGS[language][0], TOWERS["clip"])
    targets = lora_config({**LORA, "vision_rank": 2}, config).target_modules
    for name in ("output", "lm_head", "output_layer", "embed_tokens", "tok_embeddings"):
        for place in ("", "model.", f"{LANGUAGE}.", f"base_model.model.{LANGUAGE}.", f"{LANGUAGE}.layers.0."):
            assert not re.fullmatch(targets, place + name)


@pytest.mark.parametrize("layer", [-1, -2, [-2, 0]], ids=str)
@pytest.mark.parametrize("tower", sorted(TOWERS))
def test_unused_is_what_has_no_gradient(tower: str, layer: int | list[int]) -> None:
    config = composed(LANGUAGE_CONFIGS["llama"][0], TOWERS[tower])
    if tower == "internvit":
        config.vision_config.image_size, config.vision_config.patch_size = [28, 28], [7, 7]
        layer = layer if isinstance(layer, int) else layer[0]
    else:
        config.vision_config.image_size, config.vision_config.patch_size = 28, 7
    config.vision_feature_layer = layer
    from transformers import AutoModelForImageTextToText

    network = AutoModelForImageTextToText.from_config(config)
    family_of_model(network).features(network, torch.randn(1, 3, 28, 28)).square().sum().backward()
    without = {name for name, p in network.named_parameters() if name.startswith(VISION) and p.grad is None}
    assert unused_vision(config) == without
    assert bool(without) == (tower != "internvit" or layer != -1)


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
def test_what_was_trained_is_loaded_again(tmp_path: Path, training: Options, tie: bool) -> None:
    model = make_tiny_model(tmp_path, tie=tie)
    pretrained = stage(model, pretraining(training, *PARTS), tmp_path / "pretrained")
    assert ("lm_head.weight" in load_file(pretrained.parent / "language.safetensors")) == (not tie)
    before, network = load_model(model), load_model(model)
    load_parts(network, pretrained)
    same = {name for name, p in network.named_parameters() if torch.equal(p, before.get_parameter(name))}
    assert same == unused_vision(network.config)
    assert (network.lm_head.weight is network.get_input_embeddings().weight) == tie
    for name, value in load_file(pretrained.parent / "projector.safetensors").items():
        assert torch.equal(network.get_parameter(f"{PROJECTOR}.{name}"), value)
    for part in ("vision", "language"):
        for name, value in load_file(pretrained.parent / part_file(part)).items():
            assert torch.equal(network.get_parameter(name), value)


def test_only_what_was_trained_is_written(tiny_model: Path, training: Options, tmp_path: Path) -> None:
    pretrained = stage(tiny_model, pretraining(training, "vision"), tmp_path / "pretrained")
    assert {path.name for path in pretrained.parent.glob("*.safetensors")} == {"vision.safetensors"}
    network, before = load_model(tiny_model), load_model(tiny_model).state_dict()
    load_parts(network, pretrained)
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith(VISION) for name in changed)


def test_evaluation_of_a_pretraining_asks_all_that_it_trained(
    tiny_model: Path, training: Options, tmp_path: Path
) -> None:
    pretrained = stage(tiny_model, pretraining(training, "projector", "language"), tmp_path / "pretrained")
    asked = TransformersEngine(Source(tiny_model, pretrained), Settings(1, None), 1)._model
    for name, value in load_file(pretrained.parent / "language.safetensors").items():
        assert torch.equal(asked.get_parameter(name).cpu().float(), value)


def broken(change: Callable[[dict[str, torch.Tensor]], object], part: str = "language") -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / part_file(part))
        change(tensors)
        save_file(tensors, folder / part_file(part))

    return edit


def remove(folder: Path) -> None:
    for part in PARTS:
        (folder / part_file(part)).unlink()


NORM = "model.language_model.norm.weight"


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (broken(lambda t: t.pop(NORM)), "language model belongs to another model: 1 tensors differ, first language_m"),
        (broken(lambda t: t.update({NORM: torch.ones(65)})), "language model belongs to another model: 1 tensors"),
        (broken(lambda t: t.update({f"{LANGUAGE}.x": torch.ones(1)})), "first language_model.model.x"),
        (broken(lambda t: t.update({"x": torch.ones(1)})), "x is in no part of a vision-language model"),
        (broken(lambda t: t.update({NORM: torch.ones(64, dtype=torch.int8)})), "no floating-point numbers"),
        (broken(lambda t: t.pop("linear_1.bias"), "projector"), "projector belongs to another model"),
        (broken(lambda t: t.popitem(), "vision"), "vision tower belongs to another model"),
        (remove, "none of projector.safetensors, vision.safetensors, language.safetensors"),
    ],
)
def test_weights_of_another_model_are_refused(
    tiny_model: Path, training: Options, tmp_path: Path, break_it: Callable[[Path], None], message: str
) -> None:
    pretrained = stage(tiny_model, pretraining(training, *PARTS), tmp_path / "pretrained")
    break_it(pretrained.parent)
    write_manifest(pretrained.parent, base=read_manifest(tiny_model)["hash"])
    with pytest.raises(UserError, match=re.escape(message)):
        load_parts(load_model(tiny_model), pretrained)


@pytest.mark.parametrize("quantization", [NF4, {"type": "fp4", "double": False}], ids=["nf4-double", "fp4"])
def test_a_pretrained_language_model_is_quantised_after_loading(
    tmp_path: Path, training: Options, quantization: dict[str, Any]
) -> None:
    model = make_tiny_model(tmp_path, tie=False)
    pretrained = stage(model, pretraining(training, "language"), tmp_path / "pretrained")
    options = finetuning(training, "qlora", quantization=quantization)
    network = load_base(model, options, pretrained)
    state, stored = network.state_dict(), load_file(pretrained.parent / "language.safetensors")
    weights = dequantised_weights(network)
    assert len(weights) == 2 * 7
    assert all(name.startswith(LANGUAGE) for name in weights), "the output matrix is not in 4 bits"
    for name, value in stored.items():
        expected = dequantise(value, options) if name in weights else value
        assert torch.equal(weights.get(name, state[name]), expected)
    layers = [module for module in network.modules() if isinstance(module, Linear4bit)]
    assert {layer.weight.quant_type for layer in layers} == {quantization["type"]}
    assert {layer.weight.quant_state.nested for layer in layers} == {quantization["double"]}
    assert all(layer.weight.quant_state is layer.quant_state for layer in layers)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_fine_tuning_hands_on_what_pretraining_learnt(
    tiny_model: Path, training: Options, tmp_path: Path, method: str
) -> None:
    first = stage(tiny_model, pretraining(training, *PARTS), tmp_path / "pretrained").parent
    second = stage(tiny_model, finetuning(training, method), tmp_path / "tuned", first / "manifest.json").parent
    same = {part for part in PARTS if (first / part_file(part)).read_bytes() == (second / part_file(part)).read_bytes()}
    assert same == ({"vision", "language"} if method == "lora" else {"vision"})
    assert (second / "adapter_model.safetensors").exists() == (method == "lora")


def test_the_projector_is_always_part_of_a_result(tiny_model: Path, training: Options, tmp_path: Path) -> None:
    tuned = stage(tiny_model, finetuning(training, train_projector=False), tmp_path / "tuned").parent
    before = load_model(tiny_model).get_submodule(PROJECTOR).state_dict()
    assert all(torch.equal(value, before[name]) for name, value in load_file(tuned / "projector.safetensors").items())
    assert not read_json(tuned / "adapter_config.json")["modules_to_save"]
    assert all(".lora_" in name for name in load_file(tuned / "adapter_model.safetensors"))


def test_with_zero_3_deepspeed_keeps_the_weights_where_they_are(
    tiny_model: Path, training: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlmflow.training.adapters.is_deepspeed_zero3_enabled", lambda: True)
    monkeypatch.setattr("vlmflow.training.adapters.device", lambda: pytest.fail("moved to a device"))
    load_base(tiny_model, finetuning(training, "lora"))
    with pytest.raises(UserError, match="ZeRO-3 cannot spread weights in 4 bits"):
        load_base(tiny_model, finetuning(training, "qlora"))
