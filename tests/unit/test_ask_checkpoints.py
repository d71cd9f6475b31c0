"""What a checkpoint is made of when it is asked: a directory, a projector or an adapter over it, tiles."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from test_ask import COUNT, Asked, Options, all_answers, answers, asked, data, engine, model, picture
from test_parts import finetuning, pretraining, stage

from conftest import make_tiny_model
from llava_parts import build
from official import make_official
from vlmflow.assemble import assemble_pretrained
from vlmflow.data.records import Record, Turn
from vlmflow.errors import UserError
from vlmflow.evaluation.questions import questions_of
from vlmflow.files import read_json, read_manifest, write_json, write_manifest
from vlmflow.merge import merge_adapter

__all__ = ["asked", "data", "model"]  # fixtures


def test_generation_is_greedy_whatever_the_directory_says(model: Path, asked: Asked, tmp_path: Path) -> None:
    """LMDeploy does not read a penalty on repetition or a number of beams from there."""
    other = tmp_path / "penalty"
    shutil.copytree(model.parent, other)
    settings = {**read_json(other / "generation_config.json"), "repetition_penalty": 9.0, "num_beams": 2}
    write_json(other / "generation_config.json", settings)
    write_manifest(other)
    told = asked(model=other / "manifest.json", checkpoint="converted-x")
    assert read_json(told)["facts"]["asked"] == COUNT - 1
    assert answers(told) == answers(asked())


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_an_adapter_answers_as_the_model_that_it_is_merged_into(
    model: Path, asked: Asked, tmp_path: Path, training: Options, method: str
) -> None:
    adapter, merged = stage(model, finetuning(training, method), tmp_path / "tuned"), tmp_path / "m" / "manifest.json"
    merge_adapter({"base": "quantized" if method == "qlora" else "original"}, model, adapter, merged)
    unmerged = asked(adapter=adapter, checkpoint="adapter-x")
    assert answers(unmerged) == answers(asked(model=merged, checkpoint="merged-x"))
    assert set(read_json(unmerged)["facts"]["inputs"]) == {"model", "adapter", "data"}
    assert answers(unmerged) != answers(asked())


def test_a_pretrained_projector_replaces_the_models(
    model: Path, asked: Asked, tmp_path: Path, training: Options
) -> None:
    projector = stage(model, pretraining(training, "projector", "vision"), tmp_path / "pretrained")
    assembled = tmp_path / "assembled" / "manifest.json"
    assemble_pretrained(model, projector, assembled)
    over, whole = asked(projector=projector, checkpoint="pretrain-x"), asked(model=assembled, checkpoint="pretrain-y")
    assert [read_json(file)["facts"]["asked"] for file in (over, whole)] == [COUNT - 1] * 2
    assert answers(over) == answers(whole) != answers(asked())


def test_only_what_was_trained_over_this_model_is_assembled_and_asked(
    model: Path, asked: Asked, tmp_path: Path, training: Options
) -> None:
    output = tmp_path / "assembled" / "manifest.json"
    with pytest.raises(UserError, match="no result of a training"):
        assemble_pretrained(model, model, output)
    projector = stage(model, pretraining(training, "projector"), tmp_path / "pretrained")
    write_manifest(projector.parent, base="other")
    for refused in (lambda: assemble_pretrained(model, projector, output), lambda: asked(projector=projector)):
        with pytest.raises(UserError, match=r"pretrained: trained over base other, not over \w+"):
            refused()
    (projector.parent / "projector.safetensors").unlink()
    write_manifest(projector.parent, base=read_manifest(model)["hash"])
    with pytest.raises(UserError, match="no weights of a pretraining"):
        assemble_pretrained(model, projector, output)
    assert not output.parent.exists()


def test_an_adapter_of_another_base_is_refused(asked: Asked, tmp_path: Path, training: Options) -> None:
    other = make_tiny_model(tmp_path / "other", seed=1)
    adapter = stage(other, finetuning(training), tmp_path / "tuned")
    with pytest.raises(UserError, match=r"tuned: trained over base \w+, not over \w+\n    -> name the model"):
        asked(adapter=adapter)


def test_what_is_no_result_of_a_training_is_refused(model: Path, asked: Asked) -> None:
    with pytest.raises(UserError, match="no result of a training"):
        asked(adapter=model)


def test_fewer_tiles_make_shorter_prompts(tmp_path: Path) -> None:
    source = make_official("internvl2-2b", tmp_path / "source")
    tiled = build(tmp_path / "model", family="internvl", checkpoint=source, max_tiles=4) / "manifest.json"
    shown = picture(tmp_path / "wide.png", 900)
    turns = (Turn("user", "<image>\nWhat?"), Turn("assistant", "x"))
    (question,) = questions_of([Record("r", (shown,), turns)], None, "model-x")
    lengths, found = [], []
    for limit in (1, 2, None):
        asked_of = engine(tiled, max_tiles=limit)
        lengths += asked_of._inputs.lengths([question])
        found.append(all_answers(asked_of, [question])[question.key])
    assert lengths[0] < lengths[1] < lengths[2]
    assert len({answer.prompt for answer in found}) == 3
