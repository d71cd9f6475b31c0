"""Merged weights that are not kept: who misses them, and who does not. The jobs only write what their rules promise."""

from __future__ import annotations

from pathlib import Path

import pytest

from repository import ENVIRONMENT, copy_repository, jobs, snakemake

TARGET = ("results/tiny/converted/qlora/manifest.json", "--configfile", "edited.yaml")
STAND_IN = """#!/bin/sh
while [ $# -gt 0 ]; do
    case $1 in --output) output=$2;; --drop) drop=$2;; esac
    shift
done
folder=$(dirname "$output")
mkdir -p "$folder"
touch "$folder/metrics.jsonl" "$folder/report.md"
echo "{}" > "$output"
[ -z "$drop" ] || rm "$drop"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workflow whose jobs take no time."""
    folder = copy_repository(tmp_path)
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(STAND_IN)
    python.chmod(0o755)
    monkeypatch.setitem(ENVIRONMENT, "PATH", f"{python.parent}:{ENVIRONMENT['PATH']}")
    return folder


def configure(folder: Path, convert: str, more: str) -> None:
    recipe = (folder / "config" / "recipes" / "tiny.yaml").read_text()
    edited = recipe.replace("    convert: {dtype: float16, max_shard_mb: 4}", f"    {convert}\n    {more}")
    assert edited != recipe
    (folder / "edited.yaml").write_text(edited)


def test_weights_are_merged_again_for_an_edited_conversion_alone(folder: Path) -> None:
    stand_in = folder / "results" / "tiny" / "merged" / "qlora.weights"
    float16, bfloat16 = "convert: {dtype: float16}", "convert: {dtype: bfloat16}"

    configure(folder, float16, "merge: {keep: false}")
    assert jobs(snakemake(*TARGET, folder=folder))["merge_adapter"] == 1
    assert not stand_in.exists()
    assert "Nothing to be done" in snakemake(*TARGET, "-n", folder=folder)
    configure(folder, float16, "merge: {keep: true}")
    assert "Nothing to be done" in snakemake(*TARGET, "-n", folder=folder)

    configure(folder, bfloat16, "merge: {keep: true}")
    assert jobs(snakemake(*TARGET, folder=folder)) == {"merge_adapter": 1, "convert_model": 1, "total": 2}
    assert stand_in.exists()
    configure(folder, float16, "merge: {keep: false}")
    assert jobs(snakemake(*TARGET, "-n", "--config", "store=/shared", folder=folder)) == {
        "convert_model": 1,
        "total": 1,
    }
