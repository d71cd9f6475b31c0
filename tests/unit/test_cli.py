"""Scripts take what rules give them and fail with one clear line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from vlmflow.cli import run
from vlmflow.errors import Interrupted, UserError


@dataclass(frozen=True)
class Options:
    rate: float


def test_values_arrive_in_the_annotated_types() -> None:
    seen: dict[str, Any] = {}

    def stage(
        config: Options, extra: dict[str, Any], data: list[Path], count: int, projector: Path | None = None
    ) -> None:
        seen.update(config=config, extra=extra, data=data, count=count, projector=projector)

    run(stage, ["--config", '{"rate": 0.5}', "--extra", '{"a": "b c"}', "--data", "x", "y z", "--count", "3"])
    assert seen == {"config": Options(0.5), "extra": {"a": "b c"}, "data": [Path("x"), Path("y z")], "count": 3,
                    "projector": None}  # fmt: skip


def test_a_user_error_is_its_message_alone(capsys: pytest.CaptureFixture[str]) -> None:
    def stage(output: Path) -> None:
        raise UserError("is empty", "put something in", file=output, record="7", field="image")

    with pytest.raises(SystemExit) as end:
        run(stage, ["--output", "a.json"])
    assert end.value.code == "error: a.json, record 7, field image: is empty\n    -> put something in"
    assert "Traceback" not in capsys.readouterr().err


def test_broken_json_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    def stage(config: dict[str, Any]) -> None: ...

    with pytest.raises(SystemExit):
        run(stage, ["--config", "{"])
    assert "not a JSON object" in capsys.readouterr().err


def test_training_that_stopped_on_request_asks_to_be_started_again(capsys: pytest.CaptureFixture[str]) -> None:
    def stage() -> None:
        raise Interrupted(7)

    with pytest.raises(SystemExit) as end:
        run(stage, [])
    assert end.value.code == 75
    message = "stopped at step 7 on request; the state is saved, run the same command again\n"
    assert capsys.readouterr().err == message
