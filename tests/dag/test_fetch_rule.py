"""Through Snakemake: the rule takes a path, runs again when it changes, and says what is wrong with an archive."""

from __future__ import annotations

import zipfile
from pathlib import Path

import yaml

from repository import copy_repository, snakemake
from vlmflow.files import read_manifest

WEIGHTS = {"source": "mine"}
CONFIG = {
    "sources": {"mine": {"path": "data/mine", "unpack": ["*.zip"]}},
    "datasets": {"a": {"path": "data/a", "annotations": "all.json"}},
    "models": {"tiny": {"family": "llava", "language": WEIGHTS, "vision": WEIGHTS}},
    "pretrains": {"first": {"model": "tiny", "dataset": "a"}},
    "finetunes": {"second": {"init": "first", "datasets": ["a"]}},
    "evaluations": {"c": {"dataset": "a"}},
    "experiments": {"one": {"finetune": "second", "evaluations": ["c"]}},
}
MANIFEST = "results/sources/mine/manifest.json"


def test_a_path_is_fetched_again_when_it_changes(tmp_path: Path) -> None:
    folder = copy_repository(tmp_path)
    (folder / "fetch.yaml").write_text(yaml.safe_dump(CONFIG))
    mine = folder / "data" / "mine"
    mine.mkdir()

    def pack(name: str) -> None:
        with zipfile.ZipFile(mine / "a.zip", "w") as archive:
            archive.writestr(name, b"content")

    def run(check: bool = True) -> str:
        return snakemake(MANIFEST, "--configfile", "fetch.yaml", folder=folder, check=check)

    pack("one.txt")
    run()
    assert set(read_manifest(folder / MANIFEST)["files"]) == {"one.txt"}
    assert "Nothing to be done" in run()
    pack("another.txt")
    run()
    assert set(read_manifest(folder / MANIFEST)["files"]) == {"another.txt"}
    pack("../outside.txt")
    run(check=False)
    log = (folder / "results" / "logs" / "fetch_source" / "mine.log").read_text()
    assert "a.zip, record '../outside.txt': a member that could be written outside" in log
    assert not list(folder.rglob("outside.txt"))
    assert not (folder / MANIFEST).exists()
