"""Micro-batches: packed from the step's samples, smaller when memory runs out, and never what the result depends on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vlmflow.errors import UserError
from vlmflow.files import read_json
from vlmflow.models.directory import load_processor
from vlmflow.training import trainer
from vlmflow.training.batches import Loader, Packer, Room, Share, micro_batches
from vlmflow.training.objective import Objective
from vlmflow.training.options import Execution, PretrainOptions
from vlmflow.training.pretrain import train_projector
from vlmflow.training.samples import Samples

Options = Callable[..., dict[str, Any]]


@pytest.fixture
def samples(tiny_model: Path, tiny_tokens: Path) -> Samples:
    return Samples(tiny_tokens, load_processor(tiny_model), {"epochs": 2, "batch_size": 6, "seed": 0}, [1])


def pretrain(model: Path, data: Path, folder: Path, options: dict[str, Any], **how: Any) -> dict[str, torch.Tensor]:
    config = PretrainOptions(**options, train=["projector"], calibrate=0)
    execution = Execution(**{"workers": 0, **how})
    train_projector(config, model, data, execution, folder / "state", folder / "out" / "manifest.json")
    return load_file(folder / "out" / "projector.safetensors")


def test_the_micro_batches_of_all_processes_are_the_samples_of_the_step(samples: Samples) -> None:
    room = Room.of(samples, 1, few_tiles=True)
    for step in range(samples.schedule.steps):
        shares = [micro_batches(samples, step, room, Share(rank, 2)) for rank in range(2)]
        assert len(shares[0]) == len(shares[1])
        positions = [position for share in shares for batch in share for position in batch]
        assert sorted(positions) == list(samples.positions(step))


def test_the_room_is_that_of_the_longest_records(samples: Samples) -> None:
    longest = samples.most("tokens")
    assert Room.of(samples, 3, few_tiles=True) == Room(3 * longest, 3 * samples.most("tiles"))
    assert Room.of(samples, 3, few_tiles=False).tiles >= 3 * longest, "tokens alone are the limit"
    assert all(samples.row(position)["tokens"] <= longest for position in range(len(samples)))


def test_a_packed_batch_says_where_everything_is(samples: Samples) -> None:
    parts = [samples[position] for position in range(3)]
    batch = Packer(torch.float32)(parts)
    starts = batch["cu_seqlens"].tolist()
    for part, start, end in zip(parts, starts, starts[1:], strict=False):
        ids = batch["input_ids"][0, start:end]
        assert torch.equal(ids, part["input_ids"])
        assert torch.equal(batch["position_ids"][0, start:end], torch.arange(end - start))
    learnt = torch.cat([part["labels"][part["labels"] != -100] for part in parts])
    assert torch.equal(batch["targets"], learnt)
    assert torch.equal(batch["input_ids"][0, batch["supervised"] + 1], batch["targets"])
    places = torch.cat([part["image_places"] + start for part, start in zip(parts, starts, strict=False)])
    assert torch.equal(batch["image_places"], places)
    assert torch.equal(batch["slots"][batch["places"]], torch.arange(starts[-1]))


def test_loading_goes_on_from_any_step_in_other_parts(samples: Samples) -> None:
    loader = Loader(samples, 1, Share(), workers=0, dtype=torch.float32)
    loader.start(1, Room.of(samples, 6, few_tiles=False))
    steps = [step.number for step in loader]
    assert steps == list(range(1, samples.schedule.steps))
    whole = [batch for _, batch in loader.take(1)]
    loader.start(2, Room.of(samples, 2, few_tiles=False))
    parts = list(loader.take(2))
    assert len(whole) == 1
    assert [last for last, _ in parts] == [False, False, True]


def fails_above(tokens: int, monkeypatch: pytest.MonkeyPatch, after: int = 0) -> list[int]:
    """Let the forward pass run out of memory with more than ``tokens``, from its ``after``-th call on."""
    forward, seen = Objective.forward, []

    def limited(self: Objective, **batch: Any) -> torch.Tensor:
        seen.append(batch["input_ids"].numel())
        if len(seen) > after and seen[-1] > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, **batch)

    monkeypatch.setattr(Objective, "forward", limited)
    return seen


def test_out_of_memory_halves_the_micro_batch_and_changes_nothing(
    tiny_model: Path, tiny_tokens: Path, tmp_path: Path, training: Options, monkeypatch: pytest.MonkeyPatch,
    samples: Samples,
) -> None:  # fmt: skip
    undisturbed = pretrain(tiny_model, tiny_tokens, tmp_path / "whole", training(learning_rate=1e-3))
    longest = samples.most("tokens")
    seen = fails_above(longest, monkeypatch, after=3)
    shrunk = pretrain(tiny_model, tiny_tokens, tmp_path / "parts", training(learning_rate=1e-3))
    assert max(seen) > longest >= seen[-1]
    for name, value in undisturbed.items():
        torch.testing.assert_close(shrunk[name], value, rtol=0, atol=1e-5)
    facts = read_json(tmp_path / "parts" / "out" / "provenance.json")["training"]
    assert facts["micro_batch_size"] == 1
    lines = (tmp_path / "parts" / "out" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == facts["steps"]


def test_a_restart_begins_with_what_fitted(
    tiny_model: Path, tiny_tokens: Path, tmp_path: Path, training: Options, monkeypatch: pytest.MonkeyPatch,
    samples: Samples,
) -> None:  # fmt: skip
    with monkeypatch.context() as first:
        fails_above(2 * samples.most("tokens"), first)
        first.setattr(trainer.VlmTrainer, "_maybe_log_save_evaluate", lambda *_, **__: _stop())
        with pytest.raises(KeyboardInterrupt):
            pretrain(tiny_model, tiny_tokens, tmp_path, training())
    seen = fails_above(10**9, monkeypatch)
    pretrain(tiny_model, tiny_tokens, tmp_path, training())
    assert max(seen) <= 2 * samples.most("tokens")


def _stop() -> None:
    raise KeyboardInterrupt


def test_when_nothing_helps_it_says_what_would(
    tiny_model: Path, tiny_tokens: Path, tmp_path: Path, training: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails_above(0, monkeypatch)
    with pytest.raises(UserError, match="does not fit"):
        pretrain(tiny_model, tiny_tokens, tmp_path, training())


def test_a_loss_that_is_no_number_ends_the_run_before_it_is_saved(
    tiny_model: Path, tiny_tokens: Path, tmp_path: Path, training: Options
) -> None:
    with pytest.raises(UserError, match="at step"):
        pretrain(
            tiny_model, tiny_tokens, tmp_path, training(learning_rate=1e30, max_grad_norm=1e30), checkpoint_steps=1
        )
    assert not (tmp_path / "out").exists()
    for state in (tmp_path / "state").glob("*/checkpoint-*/trained.safetensors"):
        assert all(bool(value.isfinite().all()) for value in load_file(state).values())


def test_a_step_in_which_nothing_is_learnt_is_refused(samples: Samples) -> None:
    for rows in samples._rows:
        rows["supervised"] = 0
    loader = Loader(samples, 0, Share(), workers=0, dtype=torch.float32)
    with pytest.raises(UserError, match="nothing in the batch of step 3"):
        loader.supervised(2)
