"""How a metric's function becomes a scorer of items: one decorator for each thing that a metric may look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Size = tuple[int, int]


@dataclass(frozen=True)
class Item:
    """An answer, all right answers (at least one), the pictures' width and height in pixels, and the question."""

    prediction: str
    references: tuple[str, ...]
    sizes: tuple[Size, ...] = ()
    question: str = ""


Scorer = Callable[[Sequence[Item]], list[float]]
OfPair = Callable[[str, str], float]
OfItem = Callable[[Item], float]
Check = Callable[[Sequence[Item]], None]

SCORERS: dict[str, Scorer] = {}
"""Name -> scorer, of the metrics whose modules are imported."""


def metric(name: str) -> Callable[[OfPair], OfPair]:
    """Register a function of (prediction, reference); of several references, the one that scores highest counts."""

    def register(function: OfPair) -> OfPair:
        def best(item: Item) -> float:
            return max(function(item.prediction, reference) for reference in item.references)

        SCORERS[name] = lambda items: [best(item) for item in items]
        return function

    return register


def item_metric(name: str, check: Check | None = None) -> Callable[[OfItem], OfItem]:
    """Register a function of one :class:`Item`; ``check`` sees all first, and raises if the metric cannot tell."""

    def register(function: OfItem) -> OfItem:
        def score(items: Sequence[Item]) -> list[float]:
            if check:
                check(items)
            return [function(item) for item in items]

        SCORERS[name] = score
        return function

    return register


def corpus_metric(name: str) -> Callable[[Scorer], Scorer]:
    """Register a function of all items that returns a score for each."""

    def register(function: Scorer) -> Scorer:
        SCORERS[name] = function
        return function

    return register
