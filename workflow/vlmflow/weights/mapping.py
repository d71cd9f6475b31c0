"""What becomes of which tensor: rules over names, which hold in both directions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from vlmflow.errors import UserError
from vlmflow.weights.kinds import Kind

Make = Callable[..., tuple[torch.Tensor, ...]]
_LISTED = 8


class Operation(NamedTuple):
    """From the values of a rule's sources to those of its targets, and exactly back.

    Both take tensors and return a tuple of them; they run on the meta device too, to learn shapes.
    """

    forward: Make
    backward: Make


def _same(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tensors


SAME = Operation(_same, _same)
"""The values stay, only the name changes."""


class Rule(NamedTuple):
    """The tensors ``sources`` become ``targets``.

    In a name ``*`` stands for a number (of a layer) and ``**``, at its end, for any rest; both are the same in all the
    names of a rule.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    operation: Operation = SAME


class Piece(NamedTuple):
    """One step: read ``sources``, make ``targets``."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    make: Make

    @property
    def copies(self) -> bool:
        """Whether the values stay as they are."""
        return self.make is _same


def rename(names: Mapping[str, str]) -> list[Rule]:
    """Rules that only rename."""
    return [Rule((source,), (target,)) for source, target in names.items()]


def inverse(rules: Sequence[Rule]) -> list[Rule]:
    """The rules that undo these."""
    return [
        Rule(rule.targets, rule.sources, Operation(rule.operation.backward, rule.operation.forward)) for rule in rules
    ]


def plan(rules: Sequence[Rule], kinds: Mapping[str, Kind], file: Path | None = None) -> list[Piece]:
    """The steps that use every tensor of ``kinds`` exactly once, by the first rule that names it.

    Raises :class:`UserError` that lists the tensors which no rule knows, and those that a rule needs and are not there.
    """
    used: set[str] = set()
    unexpected, missing, pieces = [], [], []
    for name in kinds:
        if name in used:
            continue
        piece = next(_pieces(rules, name), None)
        if piece is None:
            unexpected.append(name)
            continue
        missing += [source for source in piece.sources if source not in kinds]
        used.update(piece.sources)
        pieces.append(piece)
    if unexpected or missing:
        raise UserError(
            "not a checkpoint of this kind: " + listed(unexpected=unexpected, missing=missing),
            "check that the model's family and its config.json belong to these weights",
            file=file,
        )
    return pieces


def listed(**groups: Sequence[str]) -> str:
    """``2 missing tensors (a, b); 1 unexpected tensor (c)``; long lists are cut."""
    parts = []
    for kind, names in groups.items():
        if names:
            shown = ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
            parts.append(f"{len(names)} {kind} tensor{'s' * (len(names) > 1)} ({shown})")
    return "; ".join(parts)


def _pieces(rules: Sequence[Rule], name: str) -> Iterator[Piece]:
    for rule in rules:
        for pattern in rule.sources:
            found = _regex(pattern).fullmatch(name)
            if found:
                fills = found.groupdict()
                sources = tuple(_filled(source, fills) for source in rule.sources)
                yield Piece(sources, tuple(_filled(target, fills) for target in rule.targets), rule.operation.forward)


_compiled: dict[str, re.Pattern[str]] = {}


def _regex(pattern: str) -> re.Pattern[str]:
    if pattern not in _compiled:
        body = re.escape(pattern.removesuffix("**")).replace(r"\*", r"(?P<number>\d+)")
        _compiled[pattern] = re.compile(body + ("(?P<rest>.*)" if pattern.endswith("**") else ""))
    return _compiled[pattern]


def _filled(pattern: str, fills: Mapping[str, str]) -> str:
    if pattern.endswith("**"):
        pattern = pattern.removesuffix("**") + fills["rest"]
    return pattern.replace("*", fills.get("number", "*"))
