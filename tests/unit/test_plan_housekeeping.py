"""Where nodes lie, and settings that are no part of any result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from vlmflow.config import TARGETS, resolve
from vlmflow.errors import UserError
from vlmflow.plan import Plan

TINY = Path(__file__).parents[2] / "config" / "recipes" / "tiny.yaml"


def tiny(**changes: Any) -> dict[str, Any]:
    return {**yaml.safe_load(TINY.read_text(encoding="utf-8")), **changes}


def test_the_store_is_an_option_of_the_command() -> None:
    assert Plan(tiny()).store() == ""
    assert Plan(tiny(store="/my store")).store() == "--store '/my store'"


def test_what_is_kept_is_no_part_of_the_result() -> None:
    config = tiny()
    config["finetunes"]["qlora"]["merge"] = {"keep": False}
    assert Plan(tiny()).keeps_merged("qlora") and not Plan(config).keeps_merged("qlora")
    assert Plan(config).merge_params("qlora") == Plan(tiny()).merge_params("qlora")


def test_folders_are_those_of_all_nodes() -> None:
    config = tiny(experiment="tiny")
    config["finetunes"]["other"] = config["finetunes"]["qlora"]
    folders = json.loads(Plan(config).folders())
    assert folders["finetune"] == folders["merged"] == ["qlora", "other"]
    assert folders["tokens"] == ["pretrain-projector", "finetune-qlora", "finetune-other"]
    assert folders["generated"] == folders["official"] == []
    assert next(iter(folders)) == "sources"
    assert folders["tables"] == ["all"]


def test_folders_go_through_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = Plan(tiny())
    assert Path(plan.folders_file()).read_text() == plan.folders()


@pytest.mark.parametrize("name", ["disk", "clean_checkpoints"])
def test_targets_are_no_names_of_experiments(name: str) -> None:
    assert name in TARGETS
    with pytest.raises(UserError, match=f"{name}: this is the name of a target"):
        resolve(tiny(experiments={name: tiny()["experiments"]["tiny"]}))
