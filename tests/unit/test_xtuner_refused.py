"""Checkpoints that do not belong to the model, or were trained in another way, are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from vlmflow.convert.xtuner import import_adapter
from vlmflow.errors import UserError
from xtuner_run import (
    FFN,
    HIDDEN,
    RANK,
    WRAP,
    State,
    adapters,
    full_state,
    internvl_state,
    llava_state,
    make_base,
    options,
    save,
)


def without(state: State, end: str) -> State:
    return {name: value for name, value in state.items() if not name.endswith(end)}


@pytest.mark.parametrize(
    ("state", "family", "reason"),
    [
        (without(llava_state(), "layers.1.attention.wo.lora_B.default.weight"), "llava",
         r"1 missing tensor \(base_model.model.model.language_model.layers.1.self_attn.o_proj.lora_B.weight\)"),
        (without(llava_state(), "projector.model.2.bias"), "llava", r"1 missing tensor \(linear_2.bias\)"),
        ({**llava_state(), "llm.model.strange": torch.ones(1)}, "llava",
         r"no such layers: 1 unexpected tensor \(language_model.model.strange\)"),
        ({**llava_state(), "strange.weight": torch.ones(1)}, "llava", r"1 unexpected tensor \(strange.weight\)"),
        ({**llava_state(), **adapters(f"llm.{WRAP}", 1, {"model.layers.2.attention.wo": (HIDDEN, HIDDEN)}, RANK)},
         "llava", r"no such layers: 2 unexpected tensors \(language_model.model.layers.2.attention.wo.lora_A.weight"),
        ({**internvl_state(), **internvl_state(model="", wrap="")}, "internvl", "duplicate tensor: .* and "),
        (internvl_state(), "llava", "not a checkpoint of this kind"),
        (llava_state(), "internvl", "not a checkpoint of this kind"),
        (without(llava_state(), ".default.weight"), "llava", "a projector at most"),
        ({"a.weight": torch.ones(1), "b.weight": torch.ones(1)}, "llava", "2 unexpected tensors"),
        ({**llava_state(), **full_state("llm.")}, "llava", "both adapters"),
        ({**llava_state(), "projector.model.0.weight": torch.ones(HIDDEN, 3)}, "llava",
         r"misshapen tensor \(linear_1.weight \[32, 3\] instead of \[32, 24\]"),
        ({**llava_state(), f"llm.{WRAP}model.layers.0.attention.wqkv.lora_B.default.weight": torch.ones(7, RANK)},
         "llava", r"attention.wqkv.lora_B.weight \[7, 4\] is of a model of other dimensions"),
    ],
)  # fmt: skip
def test_wrong_checkpoints_are_refused(
    tmp_path: Path, state: State, family: str,
    reason: str,
) -> None:  # fmt: skip
    path = save(state, tmp_path / "a.pth")
    with pytest.raises(UserError, match=reason) as caught:
        import_adapter(options(), path, make_base(tmp_path / "base", family), tmp_path / "out" / "manifest.json")
    assert caught.value.problem.file == path
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("method", "lora", "reason"),
    [
        ("lora", {"rank": 8}, "rank 4 was trained, the configuration says 8"),
        ("lora", {"vision_rank": 0}, "rank 3 was trained, the configuration says 0"),
        ("full", {}, "set method: lora or qlora"),
    ],
)
def test_another_configuration_is_refused(
    tmp_path: Path, method: str,
    lora: dict[str, Any], reason: str,
) -> None:  # fmt: skip
    model = make_base(tmp_path / "base", "llava")
    with pytest.raises(UserError, match=reason):
        path = save(llava_state(), tmp_path / "a.pth")
        import_adapter(options(method, **lora), path, model, tmp_path / "out" / "manifest.json")
    with pytest.raises(UserError, match="rank 0 was trained, the configuration says 3"):
        path = save(llava_state(vision=False), tmp_path / "a.pth")
        import_adapter(options(), path, model, tmp_path / "out" / "manifest.json")
    assert not (tmp_path / "out").exists()


def test_a_base_of_other_dimensions_is_refused(tmp_path: Path) -> None:
    model = make_base(tmp_path / "base", "llava", hidden_size=48, intermediate_size=FFN, num_attention_heads=6)
    with pytest.raises(UserError, match=r"tensors \(.*instead of|other dimensions"):
        path = save(llava_state(), tmp_path / "a.pth")
        import_adapter(options(), path, model, tmp_path / "out" / "manifest.json")
