"""Errors that a user can act on: file, record, field, reason, and what to do; and the wish to go on later."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

STOPPED = 75
"""Exit status of a stage that stopped on request and goes on when it is started again (EX_TEMPFAIL of sysexits.h)."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with an input, located as closely as is known."""

    reason: str
    advice: str = ""
    file: str | Path | None = None
    record: str | None = None
    field: str | None = None

    def __str__(self) -> str:
        places = (("", self.file), ("record ", self.record), ("field ", self.field))
        where = ", ".join(f"{name}{value}" for name, value in places if value is not None)
        return "".join((f"{where}: " if where else "", self.reason, f"\n    -> {self.advice}" if self.advice else ""))


class UserError(Exception):
    """Stops a stage with a message for the person who wrote the input; printed without a traceback."""

    def __init__(
        self,
        reason: str,
        advice: str = "",
        *,
        file: str | Path | None = None,
        record: str | None = None,
        field: str | None = None,
    ) -> None:
        self.problem = Problem(reason, advice, file, record, field)
        super().__init__(str(self.problem))


class Interrupted(Exception):  # noqa: N818 (a request, not an error)
    """Training stopped on request after ``step`` optimizer steps; its state is saved."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped at step {step} on request; the state is saved, run the same command again")
        self.step = step
