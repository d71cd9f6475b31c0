"""Evaluations that no job could make are refused before anything runs, with what would be right."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import yaml

from repository import ROOT
from vlmflow.config import resolve
from vlmflow.errors import UserError

TINY = yaml.safe_load((ROOT / "config" / "recipes" / "tiny.yaml").read_text())


def config(checkpoints: list[str] | None = None, merge: dict[str, Any] | None = None, **evaluation: Any) -> Any:
    """The tiny recipe, whose pretrain is ``projector``, fine-tune ``qlora``, evaluation ``held-out``."""
    changed = deepcopy(TINY)
    changed["evaluations"]["held-out"] |= evaluation
    changed["experiments"]["tiny"]["checkpoints"] = checkpoints or []
    changed["finetunes"]["qlora"]["merge"] = merge or {}
    return changed


def problems(changed: Any) -> str:
    with pytest.raises(UserError) as raised:
        resolve(changed)
    return str(raised.value)


GPU = {"gpu": 1}
LMDEPLOY = {"backend": "lmdeploy", "resources": GPU}


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        ({"metrics": ["exact_mach"]}, "held-out.metrics: no metric 'exact_mach'; did you mean 'exact_match'"),
        ({"metrics": ["exact_match", "zzz"]}, "evaluations.held-out.metrics: no metric 'zzz'; "),
        ({"metrics": []}, "evaluations.held-out.metrics"),
        ({"metrics": ["anls", "anls"]}, "evaluations.held-out.metrics"),
        ({"prompt": "Answer with one word."}, "evaluations.held-out.prompt: write {question} once"),
        ({"prompt": "{question} {question}"}, "evaluations.held-out.prompt: write {question} once"),
        ({"prompt": "{Question}"}, "evaluations.held-out.prompt: write {question} once"),
        ({"backend": "lmdeploy"}, "evaluations.held-out.resources.gpu: LMDeploy needs a GPU; set it to 1"),
        ({"backend": "vllm"}, "evaluations.held-out.backend"),
        ({"resources": {"gpu": 2}}, "evaluations.held-out.resources.gpu: transformers answers on one GPU; spread"),
        ({"shards": 0}, "evaluations.held-out.shards"),
        ({"max_new_tokens": 0}, "evaluations.held-out.max_new_tokens"),
        ({"limit": 0}, "evaluations.held-out.limit"),
        ({"split": "tset"}, "evaluations.held-out.split"),
        ({"blind": "grey"}, "evaluations.held-out.blind"),
        ({"chinese": "traditional"}, "evaluations.held-out.chinese"),
        ({"lmdeploy": {"cache_share": 1}}, "evaluations.held-out.lmdeploy.cache_share"),
        ({"lmdeploy": {"cache_bits": 5}}, "evaluations.held-out.lmdeploy.cache_bits"),
        ({"lmdeploy": {"cach_share": 0.5}}, "did you mean 'cache_share'?"),
        ({"dataset": "digit-question"}, "evaluations.held-out.dataset: no 'digit-question' in datasets"),
        ({"metrics": ["judge"]}, "evaluations.held-out.metrics: 'judge' needs the key 'judge'"),
    ],
)  # fmt: skip
def test_an_evaluation_that_cannot_be(evaluation: dict[str, Any], message: str) -> None:
    assert message in problems(config(**evaluation))


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ("merged", "its weights are deleted after conversion; set finetunes.qlora.merge.keep to true"),
        ("merged-qlora", "its weights are deleted after conversion; set finetunes.qlora.merge.keep to true"),
        ("converted-qlroa", "no 'qlroa' in finetunes; did you mean 'qlora'?"),
        ("adapter-x", "no 'x' in finetunes"),
        ("model-qlora", "no 'qlora' in models"),
        ("pretrain-projectr", "no 'projectr' in pretrains; did you mean 'projector'?"),
    ],
)
def test_a_checkpoint_that_cannot_be(checkpoint: str, message: str) -> None:
    assert f"experiments.tiny.checkpoints: {checkpoint}: {message}" in problems(
        config([checkpoint], merge={"keep": False})
    )


@pytest.mark.parametrize(
    "checkpoint", ["base", "adapter+blind", "converted", "model-", "converted-../x", "finetune-qlora"]
)
def test_what_is_no_name_of_a_checkpoint(checkpoint: str) -> None:
    assert "experiments.tiny.checkpoints" in problems(config([checkpoint]))


@pytest.mark.parametrize("checkpoint", ["adapter", "adapter-qlora"])
def test_lmdeploy_loads_no_adapters(checkpoint: str) -> None:
    message = f"experiments.tiny.checkpoints: {checkpoint}: LMDeploy loads whole model directories; name `merged`"
    assert message in problems(config([checkpoint], **LMDEPLOY))


@pytest.mark.parametrize(
    ("checkpoints", "changed"),
    [
        (["adapter", "model-tiny", "pretrain-projector", "converted-qlora", "adapter-qlora"], {}),
        (["merged"], {"merge": {"keep": True}}),
        (["merged-qlora", "pretrain-projector"], {"merge": {"keep": True}, **LMDEPLOY}),
        ([], {"backend": "lmdeploy", "resources": {"gpu": 2}, "shards": 4, "prompt": "{question}\nOne word."}),
    ],
)
def test_what_can_be_is_accepted(checkpoints: list[str], changed: dict[str, Any]) -> None:
    [model] = TINY["models"]
    named = [name.replace("model-tiny", f"model-{model}") for name in checkpoints]
    resolved = resolve(config(named, **changed))
    assert resolved["experiments"]["tiny"]["checkpoints"] == named


def test_all_that_is_wrong_is_said_at_once() -> None:
    found = problems(config(["merged"], {"keep": False}, metrics=["exact_mach"], prompt="", backend="lmdeploy"))
    assert found.count("\n") >= 3
    for part in ("exact_mach", "write {question} once", "LMDeploy needs a GPU", "its weights are deleted"):
        assert part in found


def test_a_split_that_nothing_is_held_out_for() -> None:
    changed = config()
    changed["datasets"]["digit-questions"]["split"] = {"test": 0}
    told = "evaluations.held-out.split: datasets.digit-questions.split.test is 0, so that there is nothing to ask"
    assert told in problems(changed)
    changed["evaluations"]["held-out"]["split"] = "validation"
    resolve(changed)
