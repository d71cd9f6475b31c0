"""The engine: what is trained, splitting a batch changes nothing, a killed run ends where it would have."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from conftest import make_tiny_data, make_tiny_model, make_tokens, read_lines
from vlmflow.errors import UserError
from vlmflow.files import read_json, read_manifest
from vlmflow.models.directory import LANGUAGE, PROJECTOR, VISION, load_model, load_processor
from vlmflow.training import trainer
from vlmflow.training.adapters import load_base, make_trainable
from vlmflow.training.attention import use_packed_attention
from vlmflow.training.batches import Packer
from vlmflow.training.calibrate import calibrate
from vlmflow.training.finetune import train_adapter
from vlmflow.training.objective import Objective
from vlmflow.training.options import Execution, FinetuneOptions, PretrainOptions
from vlmflow.training.pretrain import train_projector
from vlmflow.training.samples import Samples

Options = Callable[..., dict[str, Any]]
LORA = {"rank": 4, "alpha": 8, "dropout": 0.0, "variant": "lora", "vision_rank": 0, "vision_alpha": 16}
NF4 = {"type": "nf4", "double": True}
SCHEDULE = {"epochs": 1, "batch_size": 4, "seed": 0}


def execution(**changed: Any) -> Execution:
    return Execution(**{"micro_batch_size": 4, "workers": 0, **changed})


def finetune_options(training: Options, method: str = "lora", **changed: Any) -> FinetuneOptions:
    adapters = {**LORA, **changed.pop("lora", {})}
    lora = None if method == "full" else adapters
    quantization = NF4 if method == "qlora" else None
    return FinetuneOptions(
        **training(**changed), method=method, projector_learning_rate=None, train_projector=True,
        lora=lora, quantization=quantization,
    )  # fmt: skip


def pretrained(model: Path, data: Path, folder: Path, options: dict[str, Any], **how: Any) -> dict[str, torch.Tensor]:
    config = PretrainOptions(**options, train=["projector"], calibrate=0)
    train_projector(config, model, data, execution(**how), folder / "state", folder / "out" / "manifest.json")
    return load_file(folder / "out" / "projector.safetensors")


def test_pretraining_changes_the_projector(
    tiny_model: Path, tiny_tokens: Path, tmp_path: Path, training: Options
) -> None:
    after = pretrained(tiny_model, tiny_tokens, tmp_path, training())
    before = load_model(tiny_model).get_submodule(PROJECTOR).state_dict()
    assert set(after) == set(before)
    assert all(not torch.equal(after[name], before[name]) for name in before)
    lines = read_lines(tmp_path / "out" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[-1]["loss"] < lines[0]["loss"]
    manifest = read_manifest(tmp_path / "out" / "manifest.json")
    assert manifest["base"] == read_manifest(tiny_model)["hash"]
    assert not (tmp_path / "state").exists()
    example = read_json(tmp_path / "out" / "example.json")
    assert example["supervised"].endswith("<|im_end|>")
    assert example["supervised"] in example["text"]


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3])
def test_splitting_a_batch_changes_nothing(
    tiny_model: Path, tiny_tokens: Path, tmp_path: Path, training: Options, micro_batch_size: int
) -> None:
    """Answers differ in length, so a loss averaged per micro-batch would fail this."""
    whole = pretrained(tiny_model, tiny_tokens, tmp_path / "whole", training(learning_rate=1e-3))
    split = pretrained(
        tiny_model, tiny_tokens, tmp_path / "split", training(learning_rate=1e-3), micro_batch_size=micro_batch_size
    )
    for name, value in whole.items():
        torch.testing.assert_close(split[name], value, rtol=0, atol=1e-5)


def test_equal_runs_give_equal_bytes(tiny_model: Path, tiny_tokens: Path, tmp_path: Path, training: Options) -> None:
    for run in ("one", "two"):
        pretrained(tiny_model, tiny_tokens, tmp_path / run, training())
    one, two = (tmp_path / run / "out" / "projector.safetensors" for run in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("method", ["qlora", "full"])
def test_a_killed_run_ends_in_the_same_weights(
    tiny_model: Path, tiny_tokens: Path, tmp_path: Path, training: Options, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = finetune_options(training, method, epochs=2, lora={"dropout": 0.2})

    def finetune(name: str) -> None:
        train_adapter(options, tiny_model, [], tiny_tokens, execution(checkpoint_steps=3), tmp_path / name / "state",
                      tmp_path / name / "out" / "manifest.json")  # fmt: skip

    finetune("undisturbed")
    step, calls = trainer.VlmTrainer.training_step, 0

    def killed(self: Any, *arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return step(self, *arguments, **named)

    monkeypatch.setattr(trainer.VlmTrainer, "training_step", killed)
    with pytest.raises(KeyboardInterrupt):
        finetune("killed")
    assert not (tmp_path / "killed" / "out").exists()
    monkeypatch.setattr(trainer.VlmTrainer, "training_step", step)
    finetune("killed")
    assert read_json(tmp_path / "killed" / "out" / "provenance.json")["training"]["resumed_at_step"] == 3
    assert [line["step"] for line in read_lines(tmp_path / "killed" / "out" / "metrics.jsonl")] == list(range(1, 9))
    for file in (tmp_path / "undisturbed" / "out").glob("*.safetensors"):
        assert (tmp_path / "killed" / "out" / file.name).read_bytes() == file.read_bytes()


def test_state_of_another_configuration_is_not_resumed(
    tiny_model: Path, tiny_tokens: Path, tmp_path: Path, training: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer.VlmTrainer, "_load_from_checkpoint", lambda *_, **__: pytest.fail("resumed"))
    pretrained(tiny_model, tiny_tokens, tmp_path, training(), checkpoint_steps=1)
    state = tmp_path / "state" / "0123456789abcdef" / "checkpoint-2"
    state.mkdir(parents=True)
    (state / "trainer_state.json").write_text("{}")
    shutil.rmtree(tmp_path / "out")
    pretrained(tiny_model, tiny_tokens, tmp_path, training(learning_rate=0.5))


@pytest.mark.parametrize("method", ["qlora", "lora", "full"])
def test_what_each_method_trains(tiny_model: Path, training: Options, method: str) -> None:
    options = finetune_options(training, method)
    network = make_trainable(load_base(tiny_model, options), options)
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert all(PROJECTOR in name or LANGUAGE in name for name in trained)
    if method == "full":
        assert not any("lora" in name for name in trained)
    else:
        adapted = {name.split(".")[-4] for name in trained if "lora_A" in name}
        assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
        assert sum("lora_A" in name for name in trained) == 2 * 7
        assert not any("lm_head" in name for name in trained)


def test_adapters_on_the_vision_tower(tiny_model: Path, training: Options) -> None:
    options = finetune_options(training, lora={"vision_rank": 2})
    network = make_trainable(load_base(tiny_model, options), options)
    ranks = {name: p.shape[0] for name, p in network.named_parameters() if "lora_A" in name}
    assert {rank for name, rank in ranks.items() if VISION in name} == {2}
    assert {rank for name, rank in ranks.items() if LANGUAGE in name} == {4}


def test_only_the_language_models_blocks_are_quantised(tiny_model: Path, training: Options) -> None:
    base = load_base(tiny_model, finetune_options(training, "qlora"))
    quantised = {name for name, module in base.named_modules() if type(module).__name__ == "Linear4bit"}
    assert len(quantised) == 2 * 7
    assert all(name.startswith(LANGUAGE) for name in quantised)


def test_packed_samples_give_the_loss_of_transformers_own_padded_batch(tiny_model: Path, tiny_tokens: Path) -> None:
    """Logits only where labels are, no padding, no sample sees another."""
    model, processor = load_model(tiny_model), load_processor(tiny_model)
    samples = Samples(tiny_tokens, processor, SCHEDULE, [1])
    batch = [samples[index] for index in range(4)]
    pad = {"input_ids": processor.tokenizer.pad_token_id, "labels": -100}
    padded = {
        name: torch.nn.utils.rnn.pad_sequence([sample[name] for sample in batch], True, value)
        for name, value in pad.items()
    }
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(sample["input_ids"]) for sample in batch], True)
    pixel_values = torch.cat([sample["pixel_values"] for sample in batch])
    theirs = model(**padded, attention_mask=mask, pixel_values=pixel_values).loss
    use_packed_attention(model.model.language_model)
    ours = Objective(model)(**Packer(torch.float32)(batch)) / (padded["labels"] != -100).sum()
    torch.testing.assert_close(ours, theirs)


def test_calibration_standardises_and_keeps_the_architecture(tiny_model: Path, tiny_tokens: Path) -> None:
    model, processor = load_model(tiny_model), load_processor(tiny_model)
    samples = Samples(tiny_tokens, processor, SCHEDULE, [1])
    outputs: list[torch.Tensor] = []
    model.get_submodule(PROJECTOR).register_forward_hook(lambda _, __, output: outputs.append(output))
    calibrate(model, samples, 16, seed=0)
    batch = torch.cat([samples.sample(0, index)["pixel_values"] for index in range(len(samples.records[0]))])
    with torch.no_grad():
        model.model.get_image_features(batch)
    assert outputs[-1].std().item() == pytest.approx(model.get_input_embeddings().weight.std().item(), rel=0.05)


def test_a_projector_of_another_base_is_refused(
    tiny_model: Path, tiny_data: Path, tiny_tokens: Path, tmp_path: Path, training: Options
) -> None:
    other = make_tiny_model(tmp_path / "other", seed=1)
    tokens = make_tokens(other, [tiny_data], tmp_path / "tokens")
    pretrained(other, tokens, tmp_path, training())
    with pytest.raises(UserError, match="trained with another base"):
        train_adapter(finetune_options(training), tiny_model, [tmp_path / "out" / "manifest.json"], tiny_tokens,
                      execution(), tmp_path / "state", tmp_path / "ft" / "manifest.json")  # fmt: skip


def test_what_was_complete_is_not_trained_again_when_snakemake_did_not_see_it_end(
    tiny_model: Path, tiny_tokens: Path, tmp_path: Path, training: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrained(tiny_model, tiny_tokens, tmp_path, training())
    lost = ("manifest.json", "metrics.jsonl")  # the outputs of the rule, which snakemake deletes
    before = {name: (tmp_path / "out" / name).read_bytes() for name in lost}
    for name in lost:
        (tmp_path / "out" / name).unlink()
    with monkeypatch.context() as patched:
        patched.setattr(trainer.VlmTrainer, "training_step", lambda *_, **__: pytest.fail("trained again"))
        pretrained(tiny_model, tiny_tokens, tmp_path, training())
        assert {name: (tmp_path / "out" / name).read_bytes() for name in lost} == before
    (tmp_path / "out" / "manifest.json").unlink()
    (tmp_path / "out" / "projector.safetensors").write_bytes(b"damaged")
    pretrained(tiny_model, tiny_tokens, tmp_path, training())
    assert (tmp_path / "out" / "manifest.json").read_bytes() == before["manifest.json"], "trained again, the same"
    (tmp_path / "out" / "manifest.json").unlink()
    pretrained(tiny_model, tiny_tokens, tmp_path, training(learning_rate=0.5))
    assert (tmp_path / "out" / "manifest.json").read_bytes() != before["manifest.json"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_that_vanished_is_named(tiny_model: Path, tmp_path: Path, training: Options, workers: int) -> None:
    data = make_tiny_data(tmp_path / "data")
    tokens = make_tokens(tiny_model, [data], tmp_path / "tokens")
    (tmp_path / "data" / "3.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"3\.png, record r3: cannot read the picture"):
        pretrained(tiny_model, tokens, tmp_path, training(), workers=workers)
