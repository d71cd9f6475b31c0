"""After an edit of a finished workflow a stage fails: it is planned, with all that follows, until it succeeds."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from conftest import OwnRun
from repository import TINY, jobs, snakemake

MINE = ("mine", *TINY, "mine.yaml")


@pytest.fixture(scope="module")
def folder(own_run: OwnRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run to break."""
    return shutil.copytree(own_run.folder, tmp_path_factory.mktemp("failures") / "finished", symlinks=True)


def test_bad_data_stays_bad(folder: Path) -> None:
    picture = folder / "data" / "mine" / "0003.png"
    good = picture.read_bytes()
    picture.write_bytes(good[:60])
    for _ in range(2):
        assert "1 of 20 records" in snakemake(*MINE, folder=folder, check=False)
    for content in (good[:60], good):
        picture.write_bytes(content)
        planned = jobs(snakemake("-n", *MINE, folder=folder))
        assert {"validate_dataset", "render_report"} <= set(planned)
    snakemake(*MINE, "--until", "validate_dataset", folder=folder)
    assert "validate_dataset" not in jobs(snakemake("-n", *MINE, folder=folder))


def test_a_training_that_failed_for_another_reason_is_trained(folder: Path) -> None:
    launcher = folder / "workflow" / "scripts" / "launch.py"
    good = launcher.read_text()
    (folder / "edit.yaml").write_text("finetunes: {mine: {seed: 7}}\n")
    launcher.write_text("raise SystemExit('no GPU today')\n")
    snakemake(*MINE, "edit.yaml", folder=folder, check=False)
    launcher.write_text(good)
    planned = jobs(snakemake("-n", *MINE, "edit.yaml", folder=folder))
    assert {"train_adapter", "merge_adapter", "render_report"} <= set(planned)
