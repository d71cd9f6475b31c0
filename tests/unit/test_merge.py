"""Merging keeps what was learnt, touches nothing else, and refuses what does not belong together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_training import execution, finetune_options

from conftest import make_tiny_model, make_tokens
from vlmflow.deploy import convert_model
from vlmflow.errors import UserError
from vlmflow.files import read_json, read_manifest, write_manifest
from vlmflow.merge import merge_adapter
from vlmflow.models.directory import PROJECTOR, load_model
from vlmflow.training.finetune import train_adapter

Options = Callable[..., dict[str, Any]]
ORIGINAL, QUANTIZED = {"base": "original"}, {"base": "quantized"}


@pytest.fixture
def finetuned(tiny_model: Path, tiny_tokens: Path, tmp_path: Path, training: Options) -> Callable[..., Path]:
    def make(method: str, **changed: Any) -> Path:
        output = tmp_path / method / "manifest.json"
        options = finetune_options(training, method, **changed)
        train_adapter(options, tiny_model, [], tiny_tokens, execution(), tmp_path / "state", output)
        return output

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
        assert gap["max_abs"] < 1e-3 * gap["scale"]
    else:
        assert gap["max_abs"] > 1e-3 * gap["scale"]  # the known price of merging over the original base


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
    base = load_model(tiny_model).get_submodule(PROJECTOR).state_dict()
    save_file(base, adapter.parent / "projector.safetensors")
    write_manifest(adapter.parent, base=read_manifest(tiny_model)["hash"])
    with pytest.raises(UserError, match="changed nothing"):
        merge_adapter(ORIGINAL, tiny_model, adapter, tmp_path / "merged" / "manifest.json")


def test_nan_is_refused(tiny_model: Path, finetuned: Callable[..., Path], tmp_path: Path) -> None:
    adapter = finetuned("lora")
    weights = adapter.parent / "adapter_model.safetensors"
    save_file({name: torch.full_like(value, torch.nan) for name, value in load_file(weights).items()}, weights)
    write_manifest(adapter.parent, base=read_manifest(tiny_model)["hash"])
    with pytest.raises(UserError, match="computes something else"):
        merge_adapter(ORIGINAL, tiny_model, adapter, tmp_path / "merged" / "manifest.json")


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


def test_bfloat16_bases_stay_bfloat16(tiny_data: Path, tmp_path: Path, training: Options) -> None:
    model = make_tiny_model(tmp_path, dtype="bfloat16")
    adapter, merged = tmp_path / "adapter" / "manifest.json", tmp_path / "merged" / "manifest.json"
    tokens = make_tokens(model, [tiny_data], tmp_path / "tokens")
    train_adapter(finetune_options(training), model, [], tokens, execution(), tmp_path / "state", adapter)
    merge_adapter(ORIGINAL, model, adapter, merged)
    assert load_model(merged).dtype == torch.bfloat16
