"""A fine-tuned model before merging: the base as training had it, in 4 bits for QLoRA, with adapter and projector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftModel

from vlmflow.lora import ADAPTER
from vlmflow.training.adapters import load_base
from vlmflow.training.options import trained_with
from vlmflow.training.parts import check_base


def load_adapted(model: Path, adapter: Path) -> Any:
    """The model of manifest ``model`` with the result of fine-tuning ``adapter`` (manifest) over it, to generate with.

    In the number format that training computed in, on this process's device. Raises :class:`UserError` for an adapter
    of another base.
    """
    check_base(model, adapter)
    network = load_base(model, trained_with(adapter.parent / "provenance.json"), adapter)
    if (adapter.parent / ADAPTER).is_file():
        network = PeftModel.from_pretrained(network, adapter.parent)
    return network.eval()
