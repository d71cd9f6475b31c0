"""A model named by what it was published as."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vlmflow.config import resolve
from vlmflow.errors import UserError
from vlmflow.models.published import check_published, published
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
    assert not {"registry", "resources"} & set(params)


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
        ({"xtuner": {"path": "a.pth"}, "lora": {"rank": 8}}, r"qlora\.lora\.alpha: say what XTuner trained with"),
        (
            {"xtuner": {"path": "a.pth"}, "lora": {"rank": 8, "alpha": 8, "variant": "dora"}},
            r"qlora\.lora\.variant: XTuner trains plain LoRA",
        ),
        ({"convert": {"official": True}}, r"qlora\.convert\.official: the model 'mine' is assembled here"),
        ({"xtuner": {"source": "nowhere"}, "method": "full"}, r"qlora\.xtuner\.source: no 'nowhere' in sources"),
    ],
)
def test_what_a_finetune_cannot_ask_for(finetune: dict[str, Any], message: str) -> None:
    node = config(published="llava-internlm2-chat-1.8b")
    node["finetunes"]["qlora"] |= finetune
    with pytest.raises(UserError, match=message):
        resolve(node)


def test_official_output_and_imports_are_planned() -> None:
    node = config(published="internvl2-2b")
    trained = {"xtuner": {"path": "iter_1.pth"}, "lora": {"rank": 8, "alpha": 16}}
    node["finetunes"]["qlora"] |= {**trained, "convert": {"official": True}}
    plan = Plan(node)
    assert (plan.trained(), plan.imported(), plan.officials()) == ([], ["qlora"], ["qlora"])
    assert "xtuner" not in json.loads(plan.finetune_params("qlora"))
    assert "official" not in json.loads(plan.convert_params("qlora"))


def test_another_checkpoint_than_the_published_one_is_refused(tmp_path: Path) -> None:
    content = published("internvl2-2b").config
    (tmp_path / "config.json").write_text(json.dumps(content))
    check_published("internvl2-2b", "checkpoint", tmp_path)
    with pytest.raises(UserError, match=r"llm_config.architectures: not internvl2-1b: architectures is"):
        check_published("internvl2-1b", "checkpoint", tmp_path)
    with pytest.raises(UserError, match=r"not llava-vicuna-7b-v1\.5: architectures is"):
        check_published("llava-vicuna-7b-v1.5", "language", folder_of("llava-internlm2-chat-1.8b", tmp_path / "l"))


def folder_of(name: str, folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(published(name).config["language"]))
    return folder
