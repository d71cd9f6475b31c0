"""The words in which `snakemake -n` says why a job runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vlmflow.plan.own_files import OwnFiles
from vlmflow.plan.values import as_json
from vlmflow.why import explain


@pytest.fixture
def own_files(tmp_path: Path) -> OwnFiles:
    return OwnFiles(tmp_path / "kept")


def params(*values: Any) -> set[str]:
    """As snakemake keeps them."""
    return {repr(as_json(value) if isinstance(value, dict) else value) for value in values}


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        ([{"seed": 0, "rank": 8}], [{"seed": 1, "rank": 8}], "seed was 0, is 1"),
        ([{"lora": {"rank": 8}}], [{"lora": {"rank": 16}}], "lora.rank was 8, is 16"),
        ([{"a": 1}, {"a": 2}], [{"a": 3}], "a was 1, is 3; a was 2, is 3"),
        ([{"code": {"vlmflow/merge.py": "1", "vlmflow/old.py": "2"}}],
         [{"code": {"vlmflow/merge.py": "3", "vlmflow/new.py": "4"}}],
         "workflow/vlmflow/merge.py was edited; workflow/vlmflow/new.py is used now; "
         "workflow/vlmflow/old.py is not used now"),
        ([{"code": {str(i): "" for i in range(8)}}], [{"code": {str(i): "1" for i in range(8)}}],
         "workflow/0 was edited; workflow/1 was edited; workflow/2 was edited; workflow/3 was edited; "
         "workflow/4 was edited; and 3 more"),
        ([{"seed": 0}, {"code": {"a": "1"}}], [{"seed": 1}, {"code": {"a": "2"}}],
         "workflow/a was edited; seed was 0, is 1"),
        ([{"held-out": 1}], [{"other": 2}], "held-out was 1, is gone; other is 2, was not there"),
        (["data/a"], ["data/b"], "data/a before, data/b now"),
        (["0123456789abcdef"], [{"code": {"a": "1"}}], "another version of vlmflow ran it"),
    ],
)  # fmt: skip
def test_parameters_are_put_into_words(own_files: OwnFiles, before: list[Any], now: list[Any], words: str) -> None:
    assert explain(params(*before), params(*now), own_files) == words


def test_files_are_named(own_files: OwnFiles, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "1.png").write_bytes(b"1")
    before = own_files.state([str(mine)])
    own_files.remember()
    (mine / "1.png").write_bytes(b"22")
    now = OwnFiles(tmp_path / "kept").state([str(mine)])
    assert explain({repr(before)}, {repr(now)}, own_files) == f"files changed in {mine}: 1.png"
