"""Merging keeps what was learnt, touches nothing else, and refuses what does not belong together."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_parts import finetuning, pretraining, stage

from conftest import make_tiny_model
from vlmflow.deploy import convert_model
from vlmflow.errors import UserError
from vlmflow.files import read_json, read_manifest, write_manifest
from vlmflow.merge import merge_adapter
from vlmflow.models.directory import PROJECTOR, load_model
from vlmflow.weights.checkpoint import Checkpoint

Options = Callable[..., dict[str, Any]]
ORIGINAL, QUANTIZED = {"base": "original"}, {"base": "quantized"}


@pytest.fixture
def finetuned(tiny_model: Path, tmp_path: Path, training: Options) -> Callable[..., Path]:
    def make(method: str, **changed: Any) -> Path:
        return stage(tiny_model, finetuning(training, method, **changed), tmp_path / method)

    return make


@pytest.mark.parametrize("method", ["qlora", "lora", "full"])
@pytest.mark.parametrize("config", [ORIGINAL, QUANTIZED], ids=["original", "quantized"])
def test_merged_computes_what_the_adapter_did(
    tiny_model: Path, finetuned: Callable[..., Path], tmp_path: Path, method: str, config: dict[str, Any]
) -> None:
    merged = tmp_path / "merged" / "manifest.json"
    merge_adapter(config, tiny_model, finetuned(method), merged)
    provenance = read_json(merged.parent / "provenance.json")
    assert provenance["logits_merged_against_unmerged"]["max_abs"] < 1e-4
    gap = provenance["logits_merged_against_trained"]
    if method != "qlora":
        assert gap is None
    elif config == QUANTIZED:
        assert gap["max_abs"] < 1e-4 * gap["scale"]
    else:
        assert gap["max_abs"] > 1e-3 * gap["scale"]  # the known price of merging over the original base


@pytest.mark.parametrize("variant", ["rslora", "dora"])
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_variants_are_trained_and_merged(
    tiny_model: Path, finetuned: Callable[..., Path], tmp_path: Path, method: str, variant: str
) -> None:
    adapter, merged = finetuned(method, lora={"variant": variant}), tmp_path / "merged" / "manifest.json"
    names = load_file(adapter.parent / "adapter_model.safetensors")
    assert any("magnitude" in name for name in names) == (variant == "dora")
    merge_adapter(QUANTIZED, tiny_model, adapter, merged)
    assert read_json(merged.parent / "provenance.json")["logits_merged_against_unmerged"]["max_abs"] < 1e-4


def test_only_trained_tensors_change(tiny_model: Path, finetuned: Callable[..., Path], tmp_path: Path) -> None:
    merge_adapter(ORIGINAL, tiny_model, finetuned("lora"), tmp_path / "merged" / "manifest.json")
    before = load_model(tiny_model).state_dict()
    after = load_model(tmp_path / "merged" / "manifest.json").state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in changed if not name.startswith(PROJECTOR)} == {
        name for name in before if "language_model.layers" in name and name.endswith("_proj.weight")
    }


def test_an_adapter_of_another_base_is_refused(
    finetuned: Callable[..., Path], tmp_path: Path, tiny_model: Path
) -> None:
    del tiny_model
    other = make_tiny_model(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="trained over base"):
        merge_adapter(ORIGINAL, other, finetuned("lora"), tmp_path / "merged" / "manifest.json")
    assert not (tmp_path / "merged").exists()


def test_a_merge_that_changes_nothing_is_refused(
    tiny_model: Path, finetuned: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = finetuned("lora")
    weights = adapter.parent / "adapter_model.safetensors"
    save_file({name: torch.zeros_like(value) for name, value in load_file(weights).items()}, weights)
    write_manifest(adapter.parent, base=read_manifest(tiny_model)["hash"])
    with pytest.raises(UserError, match="changed nothing but, perhaps, the projector"):
        merge_adapter(ORIGINAL, tiny_model, adapter, tmp_path / "merged" / "manifest.json")


def test_nan_is_refused(tiny_model: Path, finetuned: Callable[..., Path], tmp_path: Path) -> None:
    adapter = finetuned("lora")
    weights = adapter.parent / "adapter_model.safetensors"
    save_file({name: torch.full_like(value, torch.nan) for name, value in load_file(weights).items()}, weights)
    write_manifest(adapter.parent, base=read_manifest(tiny_model)["hash"])
    with pytest.raises(UserError, match=r"merged language_model\.\S+ has values that are no numbers"):
        merge_adapter(ORIGINAL, tiny_model, adapter, tmp_path / "merged" / "manifest.json")
    assert not (tmp_path / "merged").exists()


def test_adapters_on_the_tower_are_merged_too(tiny_model: Path, finetuned: Callable[..., Path], tmp_path: Path) -> None:
    merged = tmp_path / "merged" / "manifest.json"
    merge_adapter(ORIGINAL, tiny_model, finetuned("lora", lora={"vision_rank": 2, "vision_alpha": 4}), merged)
    before, after = Checkpoint(tiny_model.parent), Checkpoint(merged.parent)
    changed = {name for name in before.kinds if not torch.equal(before.read(name), after.read(name))}
    assert {name.split(".")[0] for name in changed} == {"language_model", "multi_modal_projector", "vision_tower"}
    assert read_json(merged.parent / "provenance.json")["logits_merged_against_unmerged"]["max_abs"] < 1e-4


def test_a_model_that_does_not_fit_in_memory_is_merged_without_logits(
    tiny_model: Path, finetuned: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlmflow.merge_check.available_memory", lambda: 0)
    merged, converted = tmp_path / "merged" / "manifest.json", tmp_path / "converted" / "manifest.json"
    merge_adapter(ORIGINAL, tiny_model, finetuned("lora"), merged)
    convert_model({"dtype": "bfloat16", "max_shard_mb": 1}, merged, converted)
    provenance = read_json(merged.parent / "provenance.json")
    assert "GB are free" in provenance["logits_not_compared"]
    assert 0 < provenance["largest_matrix_error"] < 1e-5
    assert load_model(converted).dtype == torch.bfloat16


def test_a_cut_off_base_is_refused_and_nothing_is_left(finetuned: Callable[..., Path], tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "copy")
    weights = model.parent / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(UserError, match=r"model\.safetensors"):
        merge_adapter(ORIGINAL, model, finetuned("lora"), tmp_path / "merged" / "manifest.json")
    assert not (tmp_path / "merged").exists()


def test_an_adapter_on_a_tied_output_matrix_is_refused(
    tiny_model: Path, finetuned: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = finetuned("lora")
    weights, config = adapter.parent / "adapter_model.safetensors", adapter.parent / "adapter_config.json"
    head = {"base_model.model.lm_head.lora_A.weight": torch.ones(4, 64),
            "base_model.model.lm_head.lora_B.weight": torch.ones(320, 4)}  # fmt: skip
    save_file({**load_file(weights), **head}, weights)
    config.write_text(json.dumps({**read_json(config), "target_modules": "all-linear"}))
    write_manifest(adapter.parent, base=read_manifest(tiny_model)["hash"])
    with pytest.raises(UserError, match="the output matrix has an adapter, but it is the embedding's"):
        merge_adapter(ORIGINAL, tiny_model, adapter, tmp_path / "merged" / "manifest.json")


def test_values_that_float16_cannot_hold_are_named(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model.parent, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    tensors = load_file(weights)
    tensors["multi_modal_projector.linear_1.bias"][0] = 1e6
    save_file(tensors, weights, metadata={"format": "pt"})
    write_manifest(tmp_path / "model")
    with pytest.raises(UserError, match=r"multi_modal_projector\.linear_1\.bias has values up to 1e\+06"):
        convert_model({"dtype": "float16", "max_shard_mb": 1}, tmp_path / "model" / "manifest.json",
                      tmp_path / "converted" / "manifest.json")  # fmt: skip
    assert not (tmp_path / "converted").exists()


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
def test_conversion_writes_a_complete_directory(tmp_path: Path, tie: bool) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = make_tiny_model(tmp_path, tie=tie)
    output = tmp_path / "converted" / "manifest.json"
    convert_model({"dtype": "bfloat16", "max_shard_mb": 1}, model, output)
    config = json.loads((output.parent / "config.json").read_text())
    assert config["text_config"]["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == "bfloat16"
    reloaded = AutoModelForImageTextToText.from_pretrained(output.parent)
    assert reloaded.dtype == torch.bfloat16
    assert (reloaded.lm_head.weight is reloaded.get_input_embeddings().weight) == tie
    assert type(AutoProcessor.from_pretrained(output.parent)).__name__ == "LlavaProcessor"


@pytest.mark.parametrize("shard_mb", [0.2, 4000], ids=["shards", "one file"])
def test_weights_that_stay_as_they_are_take_no_room(tmp_path: Path, shard_mb: float) -> None:
    config = {"dtype": "float32", "max_shard_mb": shard_mb}
    model, first, second, third = (tmp_path / name / "manifest.json" for name in ("model", "first", "second", "third"))
    make_tiny_model(tmp_path)
    convert_model({"dtype": "float32", "max_shard_mb": 0.2}, model, first)
    convert_model(config, first, second)
    files = [file.name for file in first.parent.glob("*.safetensors")]
    assert len(files) > 1
    linked = [
        (second.parent / name).exists() and (second.parent / name).samefile(first.parent / name) for name in files
    ]
    assert linked == [shard_mb == 0.2] * len(files)
    (stand_in := tmp_path / "second.weights").touch()
    convert_model({**config, "dtype": "bfloat16"}, second, third, drop=stand_in)
    assert not stand_in.exists()
    assert not list(second.parent.glob("*.safetensors"))
    assert read_manifest(first, verify=True)["hash"] == read_json(second.parent / "provenance.json")["inputs"]["model"]
    assert load_model(third).dtype == torch.bfloat16


def test_a_full_disk_is_noticed_before_anything_is_written(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    config = {"dtype": "float16", "max_shard_mb": 1}
    with pytest.raises(UserError, match=r"2.*kB are to be written, and 1\.0 kB of the disk are free"):
        convert_model(config, tiny_model, tmp_path / "converted" / "manifest.json")
    assert not (tmp_path / "converted").exists()


def test_bfloat16_bases_stay_bfloat16(tmp_path: Path, training: Options) -> None:
    model, merged = make_tiny_model(tmp_path, dtype="bfloat16"), tmp_path / "merged" / "manifest.json"
    merge_adapter(ORIGINAL, model, stage(model, finetuning(training), tmp_path / "tuned"), merged)
    assert load_model(merged).dtype == torch.bfloat16


PARTS = ["projector", "vision", "language"]


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    ("method", "config"),
    [("lora", ORIGINAL), ("qlora", ORIGINAL), ("qlora", QUANTIZED), ("full", ORIGINAL)],
    ids=["lora", "qlora-original", "qlora-quantized", "full"],
)
def test_adapters_are_merged_over_what_pretraining_learnt(
    tmp_path: Path, training: Options, method: str, config: dict[str, Any], tie: bool
) -> None:
    model, merged = make_tiny_model(tmp_path, tie=tie), tmp_path / "merged" / "manifest.json"
    pretrained = stage(model, pretraining(training, *PARTS), tmp_path / "pretrained")
    lora = {"vision_rank": 2, "variant": "dora"}
    adapter = stage(model, finetuning(training, method, lora=lora), tmp_path / "tuned", pretrained)
    merge_adapter(config, model, adapter, merged)
    provenance = read_json(merged.parent / "provenance.json")
    assert provenance["logits_merged_against_unmerged"]["max_abs"] < 1e-4
    assert provenance["largest_matrix_error"] < 1e-5
    gap = provenance["logits_merged_against_trained"]
    assert (gap is None) == (method != "qlora")
    if gap is not None:
        assert (gap["max_abs"] < 1e-4 * gap["scale"]) == (config == QUANTIZED)
    after, before = load_model(merged).state_dict(), load_model(model).state_dict()
    learnt = load_file((adapter if method == "full" else pretrained).parent / "language.safetensors")
    whole = {name for name in learnt if "_proj" not in name}
    assert whole > {"model.language_model.embed_tokens.weight", "model.language_model.norm.weight"}
    assert all(torch.equal(after[name], learnt[name]) for name in whole)
    adapted = {name for name in learnt if "_proj" in name}
    assert all(torch.equal(after[name], learnt[name]) == (method == "full") for name in adapted)
    assert not any(torch.equal(after[name], before[name]) for name in learnt)


def test_full_fine_tuning_with_the_tower(tiny_model: Path, training: Options, tmp_path: Path) -> None:
    merged = tmp_path / "merged" / "manifest.json"
    adapter = stage(tiny_model, finetuning(training, "full", train_vision=True), tmp_path / "tuned")
    merge_adapter(ORIGINAL, tiny_model, adapter, merged)
    after = load_model(merged)
    for part in ("vision", "language"):
        for name, value in load_file(adapter.parent / f"{part}.safetensors").items():
            assert torch.equal(after.get_parameter(name), value)
    assert read_json(merged.parent / "provenance.json")["logits_merged_against_unmerged"]["max_abs"] < 1e-4


def test_an_adapter_that_changes_nothing_is_refused_whatever_pretraining_learnt(
    tiny_model: Path, training: Options, tmp_path: Path
) -> None:
    pretrained = stage(tiny_model, pretraining(training, *PARTS), tmp_path / "pretrained")
    adapter = stage(tiny_model, finetuning(training), tmp_path / "tuned", pretrained)
    weights = adapter.parent / "adapter_model.safetensors"
    save_file({name: torch.zeros_like(value) for name, value in load_file(weights).items()}, weights)
    write_manifest(adapter.parent, base=read_manifest(tiny_model)["hash"])
    with pytest.raises(UserError, match="changed nothing but, perhaps, the projector"):
        merge_adapter(ORIGINAL, tiny_model, adapter, tmp_path / "merged" / "manifest.json")


@pytest.mark.parametrize(
    ("method", "lost", "left_over", "message"),
    [
        ("lora", "projector.safetensors", None, "no projector"),
        ("full", "language.safetensors", None, "no language model"),
        ("full", None, "adapter_model.safetensors", "of a training without adapters"),
    ],
)
def test_a_result_that_is_not_whole_is_refused(
    tiny_model: Path, training: Options, tmp_path: Path, method: str, lost: str, left_over: str, message: str
) -> None:
    adapter = stage(tiny_model, finetuning(training, method), tmp_path / "tuned")
    if lost:
        (adapter.parent / lost).unlink()
    if left_over:
        save_file({"x": torch.ones(1)}, adapter.parent / left_over)
    write_manifest(adapter.parent, base=read_manifest(tiny_model)["hash"])
    with pytest.raises(UserError, match=message):
        merge_adapter(ORIGINAL, tiny_model, adapter, tmp_path / "merged" / "manifest.json")
