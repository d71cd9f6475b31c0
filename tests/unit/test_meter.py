"""Rates of a training run, and what cards can do."""

from __future__ import annotations

import pytest
import torch

from vlmflow.cost.cards import peak_flops
from vlmflow.training import meter
from vlmflow.training.meter import Meter


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def wait(found: Meter, clock: Clock, seconds: float) -> None:
    with found.waiting():
        clock.now += seconds


def test_rates_are_of_all_processes_and_the_utilisation_of_one_card() -> None:
    clock = Clock()
    found = Meter(2, 1000.0, clock)
    wait(found, clock, 0.5)
    found.add(3, 100, 20, 7, flops=1500.0)
    clock.now += 1.5
    found.add(5, 300, 30, 1, flops=500.0)
    assert found.drain() == {"samples_per_s": 8, "tokens_per_s": 400, "supervised_per_s": 50, "tiles_per_s": 8,
                             "data_wait": 0.25, "mfu": 1.0}  # fmt: skip


def test_rates_are_those_since_the_last_line() -> None:
    clock = Clock()
    found = Meter(1, 1000.0, clock)
    clock.now += 60  # the first step compiles
    found.add(1, 10, 1, 1, flops=1.0)
    wait(found, clock, 1)
    found.drain()
    found.add(4, 40, 4, 4, flops=200.0)
    clock.now += 2
    rates = found.drain()
    assert (rates["samples_per_s"], rates["data_wait"], rates["mfu"]) == (2, 0, 0.1)


def test_a_restart_forgets() -> None:
    clock = Clock()
    found = Meter(1, None, clock)
    found.add(1, 1, 1, 1, 1.0)
    clock.now += 5
    found.restart()
    clock.now += 1
    assert found.drain()["samples_per_s"] == 0


def test_waiting_costs_nothing_while_the_gpu_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    found = Meter(1, None, clock)
    monkeypatch.setattr(meter, "_gpu_is_busy", lambda: True)
    wait(found, clock, 1)
    monkeypatch.setattr(meter, "_gpu_is_busy", lambda: False)
    wait(found, clock, 1)
    clock.now += 2
    assert found.drain()["data_wait"] == 0.25


def test_no_utilisation_without_a_known_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert meter.device_peak() is None
    assert Meter(1, None).drain()["mfu"] is None


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA GeForce RTX 3090", 71e12),
        ("NVIDIA RTX A6000", 155e12),
        ("Tesla V100-SXM2-16GB", 125e12),
        ("Tesla T4", 65e12),
        ("NVIDIA T400", None),
        ("NVIDIA L4", None),
        ("AMD Instinct MI300X", None),
    ],
)
def test_cards_by_the_names_that_torch_gives(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak
