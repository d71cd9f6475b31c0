"""An official InternVL with what XTuner learnt, computed by hand, against the directory after import and merge."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText

from official import make_official
from reference import official_tensors, reference_logits
from vlmflow.convert.internvl import to_native
from vlmflow.convert.xtuner import import_adapter
from vlmflow.files import read_json, staged_directory, write_manifest
from vlmflow.merge import merge_adapter
from xtuner_run import ALPHA, RANK, VISION_ALPHA, VISION_RANK, WRAP, State, options, save

LINEAR = re.compile(
    r"vision_model\..*\.(?:attn\.qkv|attn\.proj|mlp\.fc\d)|language_model\.output"
    r"|language_model\.model\.layers\..*(?:wqkv|wo|w[123]|_proj)"
)


def trained_in_full(tensors: State) -> tuple[State, State]:
    """The same of a run that trains language model and projector as they are."""
    torch.manual_seed(0)
    parts = ("language_model.", "mlp1.")
    learnt = {name: value + torch.randn(value.shape) / 20 for name, value in tensors.items() if name.startswith(parts)}
    return {f"model.{name}": value for name, value in learnt.items()}, tensors | learnt


def trained(tensors: State) -> tuple[State, State]:
    """XTuner's checkpoint of a run over an official model, and that model with the run's result in its weights."""
    torch.manual_seed(0)
    state: State = {}
    merged = dict(tensors)
    for name, value in tensors.items():
        module = name.removesuffix(".weight")
        part = module.split(".")[0]
        if LINEAR.fullmatch(module) and name.endswith(".weight"):
            rank, alpha = (VISION_RANK, VISION_ALPHA) if part == "vision_model" else (RANK, ALPHA)
            down, up = torch.randn(rank, value.shape[1]) / 20, torch.randn(value.shape[0], rank) / 20
            place = f"model.{part}.{WRAP}{module.removeprefix(part + '.')}"
            state |= {f"{place}.lora_A.default.weight": down, f"{place}.lora_B.default.weight": up}
            merged[name] = value + alpha / rank * up @ down
        elif part == "mlp1":
            state[f"model.{name}"] = merged[name] = value + torch.randn(value.shape) / 20
    return state, merged


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("name", ["internvl2-2b", "internvl2-1b", "internvl2-4b", "internvl2-40b"])
def test_merged_logits_are_those_of_the_official_layout(name: str, method: str, tmp_path: Path) -> None:
    official = make_official(name, tmp_path / "official", dtype=torch.float32)
    model, adapter, merged = (tmp_path / part / "manifest.json" for part in ("model", "adapter", "merged"))
    with staged_directory(model.parent) as folder:
        to_native(official, folder)
        write_manifest(folder)
    state, weights = (trained if method == "lora" else trained_in_full)(official_tensors(official))
    if method == "lora":
        assert any(name.endswith("model.output.lora_A.default.weight") for name in state) == (name == "internvl2-2b")
    import_adapter(options(method), save(state, tmp_path / "iter_1.pth"), model, adapter)
    merge_adapter({"base": "original"}, model, adapter, merged)
    for file in official.glob("*.safetensors"):
        file.unlink()
    save_file({name: value.contiguous() for name, value in weights.items()}, official / "model.safetensors")
    (official / "model.safetensors.index.json").unlink(missing_ok=True)
    network = AutoModelForImageTextToText.from_pretrained(merged.parent, dtype=torch.float32).eval()
    side, context = network.config.vision_config.image_size[0], network.config.image_token_id
    assert read_json(official / "added_tokens.json")["<IMG_CONTEXT>"] == context
    picture = torch.randn(2, 3, side, side)
    ids = torch.tensor([[1, *[context] * 2 * network.config.image_seq_length, 40, 41, 42]])
    with torch.no_grad():
        ours, plain = network(input_ids=ids, pixel_values=picture).logits, reference_logits(official, ids, picture)
    assert (ours - plain).abs().max() < 1e-4 * plain.abs().max()
