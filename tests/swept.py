"""The demo's configuration with sweeps over it."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from vlmflow.config import resolve
from vlmflow.errors import UserError

DEMO = yaml.safe_load((Path(__file__).parents[1] / "config" / "config.yaml").read_text())


def swept(sweep: dict[str, Any], **sections: dict[str, Any]) -> dict[str, Any]:
    """The demo's configuration with a sweep called ``rates`` and more nodes."""
    config = deepcopy(DEMO)
    for section, nodes in sections.items():
        config.setdefault(section, {}).update(nodes)
    config["sweeps"] = {"rates": {"base": "digits", **sweep}}
    return config


def grid(**values: list[Any]) -> dict[str, Any]:
    """The demo with a grid; ``lora__rank`` is ``finetune.lora.rank``, ``pretrain__seed`` is ``pretrain.seed``."""
    keys = [key.replace("__", ".") for key in values]
    keys = [key if key.split(".")[0] in ("pretrain", "model") else f"finetune.{key}" for key in keys]
    return swept({"grid": dict(zip(keys, values.values(), strict=True))})


def added(config: dict[str, Any], section: str) -> list[str]:
    """Names of the nodes that a sweep added."""
    return [name for name in resolve(config)[section] if name not in config[section]]


def told(config: dict[str, Any]) -> str:
    with pytest.raises(UserError) as error:
        resolve(config)
    return str(error.value)
