"""A model named by what it was published as."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vlmflow.config import resolve
from vlmflow.errors import UserError
from vlmflow.plan import Plan


def config(**model: Any) -> dict[str, Any]:
    return {
        "models": {"mine": model},
        "datasets": {"food": {"path": "data/food", "annotations": "a.json"}},
        "finetunes": {"qlora": {"init": "mine", "datasets": ["food"]}},
        "evaluations": {"held-out": {"dataset": "food"}},
        "experiments": {"food": {"finetune": "qlora", "evaluations": ["held-out"]}},
    }


def test_its_name_is_enough() -> None:
    resolved = resolve(config(published="internvl2-2b"))
    model = resolved["models"]["mine"]
    assert (model["family"], model["template"]) == ("internvl", "internvl2")
    assert resolved["sources"]["mine-checkpoint"]["hub"] == "OpenGVLab/InternVL2-2B"
    params = json.loads(Plan(config(published="internvl2-2b")).model_params("mine"))
    assert params["checkpoint"] == "results/sources/mine-checkpoint"
    assert resolve(resolved) == resolved
    assert not {"published", "registry", "resources"} & set(params)


def test_a_llava_has_two_downloads_from_either_registry() -> None:
    sources = resolve(config(published="llava-internlm2-chat-1.8b", registry="modelscope"))["sources"]
    assert {name: node["modelscope"].split("/")[1] for name, node in sources.items()} == {
        "mine-language": "internlm2-chat-1_8b", "mine-vision": "clip-vit-large-patch14-336",
    }  # fmt: skip


def test_what_is_given_is_kept() -> None:
    given = {"checkpoint": {"path": "/models/x"}, "template": "internvl2-xtuner"}
    resolved = resolve(config(published="internvl2-2b", **given))
    assert resolved["models"]["mine"]["checkpoint"]["path"] == "/models/x"
    assert resolved["models"]["mine"]["template"] == "internvl2-xtuner"
    assert not resolved["sources"]


def test_an_unknown_name_is_told_the_nearest() -> None:
    with pytest.raises(UserError, match=r"models\.mine\.published: unknown model: internvl2-2B .*mean internvl2-2b"):
        resolve(config(published="internvl2-2B"))


def test_family_or_published() -> None:
    with pytest.raises(UserError, match=r"models\.mine: give one of published, family"):
        resolve(config(checkpoint={"path": "x"}))


@pytest.mark.parametrize(
    ("finetune", "message"),
    [
        ({"xtuner": {"path": "a.pth"}, "lora": {"variant": "dora"}}, r"qlora\.lora\.variant: XTuner trains plain LoRA"),
        ({"convert": {"official": True}}, r"qlora\.convert\.official: the model 'mine' is assembled here"),
        ({"xtuner": {"source": "nowhere"}}, r"qlora\.xtuner\.source: no 'nowhere' in sources"),
    ],
)
def test_what_a_finetune_cannot_ask_for(finetune: dict[str, Any], message: str) -> None:
    node = config(published="llava-internlm2-chat-1.8b")
    node["finetunes"]["qlora"] |= finetune
    with pytest.raises(UserError, match=message):
        resolve(node)


def test_official_output_and_imports_are_planned() -> None:
    node = config(published="internvl2-2b")
    node["finetunes"]["qlora"] |= {"xtuner": {"path": "iter_1.pth"}, "convert": {"official": True}}
    plan = Plan(node)
    assert (plan.trained(), plan.imported(), plan.officials()) == ([], ["qlora"], ["qlora"])
    assert "xtuner" not in json.loads(plan.finetune_params("qlora"))
    assert "official" not in json.loads(plan.convert_params("qlora"))
