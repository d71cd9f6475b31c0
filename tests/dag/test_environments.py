"""Where jobs find their software: conda, environment modules, containers; what of it runs anything again; secrets.

tests/conda stands in for conda and Apptainer, which cannot be had everywhere.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from PIL import Image

from repository import ENVIRONMENT, ROOT, TINY, copy_repository, jobs, snakemake

CHECKED = "results/tiny/data/colours/manifest.json"
OWN = (*TINY, "colours.yaml")
COLOURS = """
sources: {colours: {path: colours}}
datasets: {colours: {source: colours, annotations: labels.csv}}
"""
PRIVATE = """
sources: {private: {hub: me/private}}
datasets: {folder: {path: colours, annotations: labels.csv}}
"""
BOTH = {"fetch_source": 1, "validate_dataset": 1, "total": 2}


def run(folder: Path, *arguments: str, target: str = CHECKED, check: bool = True) -> str:
    return snakemake(target, *arguments, *OWN, folder=folder, check=check)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the repository with twelve pictures of its own, and the stand-ins on the path."""
    folder = copy_repository(tmp_path_factory.mktemp("environments"))
    (folder / "colours.yaml").write_text(COLOURS)
    (folder / "colours").mkdir()
    rows = ["image,question,answer"]
    for shade in range(12):
        Image.new("RGB", (20, 20), (20 * shade, 0, 0)).save(folder / "colours" / f"{shade}.png")
        rows.append(f"{shade}.png,What colour?,red")
    (folder / "colours" / "labels.csv").write_text("\n".join(rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENVIRONMENT, "PATH", f"{ROOT / 'tests' / 'conda' / 'bin'}:{ENVIRONMENT['PATH']}")
        patch.setitem(ENVIRONMENT, "SINGULARITY_CALLS", str(folder / "calls"))
        yield folder


@pytest.fixture(scope="module")
def made(clone: Path) -> tuple[Path, str]:
    """The copy after a run in conda environments, and what was printed."""
    return clone, run(clone, "--sdm", "conda")


def test_every_job_runs_in_the_environment_of_its_rule(made: tuple[Path, str]) -> None:
    folder, printed = made
    [history] = folder.glob(".snakemake/conda/*/conda-meta/history")
    assert printed.count(f"Activating conda environment: .snakemake/conda/{history.parents[1].name}") == 2
    assert "torch==2.13.0" in json.loads(history.read_text())["dependencies"][-1]["pip"]


@pytest.mark.parametrize(("file", "pin", "expected"), [("lmdeploy", "lmdeploy==0.18.0", {}), ("train", "peft==", BOTH)])
def test_a_pin_runs_the_rules_of_its_environment_again(
    made: tuple[Path, str], file: str, pin: str, expected: dict[str, int]
) -> None:
    path = made[0] / "envs" / f"{file}.yaml"
    before = path.read_text()
    path.write_text(before.replace(pin, "six=="))
    assert path.read_text() != before
    assert jobs(run(made[0], "-n", "--sdm", "conda")) == expected
    path.write_text(before)


@pytest.mark.parametrize("methods", [("conda", "--conda-prefix", "elsewhere"), ("apptainer", "env-modules")])
def test_nothing_runs_again_for_another_place_of_the_same_software(
    made: tuple[Path, str], methods: tuple[str, ...]
) -> None:
    site = ("--config", "container=image.sif", "environment_modules={train: [cuda/12.8]}")
    assert jobs(run(made[0], "-n", *site, "--sdm", *methods)) == {}


def test_jobs_run_in_the_container(made: tuple[Path, str]) -> None:
    folder = made[0]
    (folder / "image.sif").touch()
    fetched = "results/tiny/sources/colours/manifest.json"
    arguments = ("--force", "--config", "container=image.sif", "--sdm", "apptainer", "--apptainer-args=--nv")
    run(folder, *arguments, target=fetched)
    [call] = (folder / "calls").read_text().splitlines()
    assert " --nv " in call
    assert "image.sif bash -c set -euo pipefail;  python workflow/scripts/fetch_source.py" in call


def test_containerize_prints_how_to_build_the_image(clone: Path) -> None:
    printed = snakemake("--containerize", *TINY, folder=clone)
    assert "FROM condaforge/miniforge3" in printed
    assert "COPY envs/train.yaml /conda-envs/" in printed
    assert "RUN conda env create" in printed


MODULE = """#%Module1.0
setenv SITE_LIBRARY /site/lib
prepend-path PATH {folder}
"""
PYTHON = """#!/bin/sh
echo "$LOADEDMODULES $SITE_LIBRARY" >> "{folder}/seen"
exec python3 "$@"
"""


@pytest.mark.slurm  # needs the Debian package environment-modules, installed where those tests run
@pytest.mark.parametrize("module", ["site/1.0", "missing/1.0"])
def test_jobs_load_modules(clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    (tmp_path / "modules" / "site").mkdir(parents=True)
    (tmp_path / "modules" / "site" / "1.0").write_text(MODULE.format(folder=tmp_path))
    (tmp_path / "python").write_text(PYTHON.format(folder=tmp_path))
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setitem(ENVIRONMENT, "BASH_ENV", "/usr/share/modules/init/bash")
    monkeypatch.setitem(ENVIRONMENT, "MODULEPATH", str(tmp_path / "modules"))
    found = module.startswith("site")
    arguments = ("--forceall", "--sdm", "env-modules", "--config", f"environment_modules={{train: [{module}]}}")
    printed = run(clone, *arguments, check=found)
    if found:
        assert (tmp_path / "seen").read_text() == "site/1.0 /site/lib\n" * 2
    else:
        assert "Unable to locate a modulefile for 'missing/1.0'" in printed
        assert not (tmp_path / "seen").exists()


class Hub(BaseHTTPRequestHandler):
    """Has nothing for anybody, and remembers who asked."""

    seen: list[str | None]

    def do_GET(self) -> None:
        self.seen.append(self.headers.get("Authorization"))
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[HTTPServer]:
    Hub.seen = []
    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_token_reaches_downloads_and_no_cluster_job(
    clone: Path, hub: HTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, command in {"sacctmgr": "echo default", "sbatch": f"env > '{tmp_path}/submitted'; exit 1"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{command}\n")
        (tmp_path / name).chmod(0o755)
    (clone / "private.yaml").write_text(PRIVATE)
    address, path = f"http://127.0.0.1:{hub.server_port}", f"{tmp_path}:{ENVIRONMENT['PATH']}"
    variables = {"HF_TOKEN": "mine", "OPENAI_API_KEY": "mine", "HF_ENDPOINT": address, "PATH": path}
    for name, value in variables.items():
        monkeypatch.setitem(ENVIRONMENT, name, value)
    targets = ("results/tiny/sources/private/manifest.json", "results/tiny/data/folder/manifest.json")
    profile = (
        "--profile",
        "workflow/profiles/slurm",
        "--retries",
        "0",
        "--slurm-init-seconds-before-status-checks",
        "1",
    )
    snakemake(*targets, *profile, *OWN, "private.yaml", folder=clone, check=False)
    assert "Bearer mine" in Hub.seen
    submitted = (tmp_path / "submitted").read_text()
    assert "HF_ENDPOINT" in submitted
    assert "mine" not in submitted
