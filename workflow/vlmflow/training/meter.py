"""How fast training is: samples, tokens and arithmetic per second, and the share of time that waited for data."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from vlmflow.cost.cards import peak_flops


class Meter:
    """Counts the work of this process; the rates of :meth:`drain` are those of all processes together.

    ``peak`` is what the card can do at most, in FLOP/s; None where that is not known, as on a CPU.
    """

    def __init__(self, processes: int, peak: float | None, clock: Callable[[], float] = time.perf_counter) -> None:
        self._processes, self._peak, self._clock = processes, peak, clock
        self.restart()

    def restart(self) -> None:
        """Forget what was counted and start the clock anew."""
        self._done: Counter[str] = Counter()
        self._flops = self._waited = 0.0
        self._since = self._clock()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the fetching of a micro-batch. A wait that ends while the GPU still computes cost nothing."""
        start = self._clock()
        yield
        if not _gpu_is_busy():
            self._waited += self._clock() - start

    def add(self, samples: int, tokens: int, supervised: int, tiles: int, flops: float) -> None:
        """Count one micro-batch of this process; ``flops`` of forward and backward pass, without recomputation."""
        self._done.update(samples=samples, tokens=tokens, supervised=supervised, tiles=tiles)
        self._flops += flops

    def drain(self) -> dict[str, float | None]:
        """Rates since the last call, rounded.

        Per second ``samples_per_s``, ``tokens_per_s``, ``supervised_per_s``, ``tiles_per_s``; ``data_wait``, the share
        of time (0 to 1) that waited for data; ``mfu``, model FLOP utilisation (0 to 1; Chowdhery et al. 2022, PaLM,
        appendix B), None without a known peak.
        """
        seconds = max(self._clock() - self._since, 1e-9)
        each = self._processes / seconds
        rates: dict[str, float | None] = {
            f"{name}_per_s": round(self._done[name] * each, 2) for name in ("samples", "tokens", "supervised", "tiles")
        }
        rates["data_wait"] = round(self._waited / seconds, 4)
        rates["mfu"] = round(self._flops / seconds / self._peak, 4) if self._peak else None
        self.restart()
        return rates


def device_peak() -> float | None:
    """FLOP/s that this process's GPU can reach at most; None on a CPU and on cards that are not in the table."""
    return peak_flops(torch.cuda.get_device_name()) if torch.cuda.is_available() else None


def _gpu_is_busy() -> bool:
    return torch.cuda.is_available() and not torch.cuda.current_stream().query()
