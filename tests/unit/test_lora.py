"""Updates of single weights are what peft itself merges."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from vlmflow.errors import UserError
from vlmflow.lora import read_adapter


class Network(torch.nn.Module):
    """A few layers whose names look like a language model's."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {"tie_word_embeddings": False}
        self.layers = torch.nn.ModuleList(
            torch.nn.ModuleDict({"q_proj": torch.nn.Linear(12, 8), "up_proj": torch.nn.Linear(8, 12, bias=False)})
            for _ in range(2)
        )
        self.lm_head = torch.nn.Linear(12, 20, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer["up_proj"](layer["q_proj"](x))
        return self.lm_head(x)


def adapter(folder: Path, **options: Any) -> tuple[Network, PeftModel]:
    """The base, and the same with a trained adapter that is saved in ``folder``."""
    torch.manual_seed(0)
    base = Network()
    state = {name: value.clone() for name, value in base.state_dict().items()}
    config = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "up_proj"], **options}
    wrapped = get_peft_model(base, LoraConfig(**config))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name or "magnitude" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    wrapped.save_pretrained(folder)
    fresh = Network()
    fresh.load_state_dict(state)
    return fresh, wrapped.eval()


@pytest.mark.parametrize(
    "options",
    [
        {}, {"use_rslora": True}, {"use_dora": True}, {"use_dora": True, "use_rslora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 5}},
        {"rank_pattern": {r"layers\.1\.q_proj": 2}, "alpha_pattern": {r".*up_proj": 3}},
        {"target_modules": r"layers\.\d+\..*_proj|lm_head"},
        {"init_lora_weights": "gaussian"},
    ],
    ids=["lora", "rslora", "dora", "dora-rslora", "patterns", "regex-patterns", "regex", "gaussian"],
)  # fmt: skip
def test_merged_weights_are_those_of_peft(tmp_path: Path, options: dict[str, Any]) -> None:
    base, wrapped = adapter(tmp_path, **options)
    inputs = torch.randn(5, 12)
    expected = wrapped(inputs)
    merged = wrapped.merge_and_unload().state_dict()
    updates = read_adapter(tmp_path, LINEARS)
    state, original = base.state_dict(), copy.deepcopy(base.state_dict())
    for module, update in updates.items():
        weight = state[f"{module}.weight"]
        before = weight.clone()
        value, error = update.merged(weight)
        assert torch.equal(weight, before), "the base is left alone"
        torch.testing.assert_close(value, merged[f"{module}.weight"], atol=1e-6, rtol=1e-6)
        assert error < 1e-5
        state[f"{module}.weight"] = value
    base.load_state_dict(state)
    torch.testing.assert_close(base(inputs), expected, atol=1e-5, rtol=1e-5)
    assert {f"{module}.weight" for module in updates} == {n for n in merged if not torch.equal(merged[n], original[n])}


def edit_config(**changed: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))

    return edit


def edit_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return edit


LINEARS = [f"layers.{index}.{name}" for index in range(2) for name in ("q_proj", "up_proj")] + ["lm_head"]
FIRST = "base_model.model.layers.0.q_proj.lora_A.weight"
BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "kind": (edit_config(peft_type="IA3"), "adapter of type IA3"),
    "bias": (edit_config(bias="all"), "adapters with bias"),
    "pissa": (edit_config(init_lora_weights="pissa"), "adapters with init_lora_weights"),
    "transposed": (edit_config(fan_in_fan_out=True), "adapters with fan_in_fan_out"),
    "rank": (edit_config(r=8), "its rank should be 8"),
    "dora": (edit_config(use_dora=True), "use_dora and the tensors of"),
    "targets": (edit_config(target_modules=["up_proj"]), "2 layers have an adapter but are no target"),
    "a layer": (
        edit_tensors(lambda tensors: [tensors.pop(name) for name in list(tensors) if "layers.1.up_proj" in name]),
        "1 layers should have an adapter and have none, first layers.1.up_proj",
    ),
    "integers": (edit_tensors(lambda t: t.update({FIRST: t[FIRST].int()})), "no floating-point numbers"),
    "no rank": (edit_config(r=None), "its rank should be None"),
    "pattern": (edit_config(target_modules="("), "target_modules is no regular expression"),
    "list": (lambda folder: (folder / "adapter_config.json").write_text("[]"), "no adapter_config.json of peft"),
    "half": (edit_tensors(lambda tensors: tensors.pop(FIRST)), r"half of the adapter of layers\.0\.q_proj is missing"),
    "other": (
        edit_tensors(lambda tensors: tensors.update(x=torch.zeros(1))),
        r"no part of a low-rank adapter: \['x'\]",
    ),
    "empty": (edit_tensors(lambda tensors: tensors.clear()), "the adapter is empty"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_merged_is_refused(tmp_path: Path, name: str) -> None:
    damage, message = BROKEN[name]
    adapter(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        read_adapter(tmp_path, LINEARS)
    assert error.value.problem.file is not None
