"""A Slurm for the tests, and copies of the repository in which everything before fine-tuning is done."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from repository import copy_repository, snakemake
from slurm import cluster
from slurm.scenarios import SIDE_BY_SIDE, NewRun, Outcome
from slurm.submitted import CONFIGURATION, TRAINED, Submitted

SIZE = {"gpu": 1, "cpus": 2, "mem_mb": 3000, "runtime": 30, "checkpoint_steps": 5}
AT_ONCE = 4


@pytest.fixture(scope="session", autouse=True)
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cluster that runs already is used and left alone."""
    if cluster.is_up():
        yield
        return
    folder = tmp_path_factory.mktemp("cluster")
    try:
        cluster.start(folder)
    except cluster.ClusterError as error:
        pytest.fail(str(error))
    yield
    cluster.stop(folder)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository adapted to the site as docs/slurm.md says, with the inputs of fine-tuning made on this machine."""
    folder = copy_repository(tmp_path_factory.mktemp("prepared"))
    profile = folder / "workflow" / "profiles" / "slurm" / "config.yaml"
    profile.write_text(re.sub(r"slurm_account: \w+", f"slurm_account: {cluster.ACCOUNT}", profile.read_text()))
    configure(folder, SIZE)
    snakemake(*CONFIGURATION, "--omit-from", "train_adapter", "--", TRAINED, folder=folder)
    return folder


@pytest.fixture(scope="session")
def undisturbed(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole recipe on this machine, without Slurm; its results."""
    folder = _copy(prepared, tmp_path_factory.mktemp("undisturbed"))
    snakemake(*CONFIGURATION, folder=folder)
    return folder / "results" / "tiny"


@pytest.fixture(scope="session")
def submitted(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NewRun]:
    made: list[Submitted] = []

    def make(name: str, **resources: int) -> Submitted:
        folder = _copy(prepared, tmp_path_factory.mktemp(name))
        configure(folder, {**SIZE, **resources})
        made.append(Submitted(folder))
        return made[-1]

    yield make
    for run in made:
        run.stop()


@pytest.fixture(scope="session")
def outcomes(request: pytest.FixtureRequest, submitted: NewRun) -> Iterator[dict[str, Future[Outcome]]]:
    """Of the scenarios whose tests were chosen, side by side, since most of the time of each is waiting."""
    chosen = {item.name for item in request.session.items}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {
            f"test_{scenario.__name__}": pool.submit(scenario, submitted)
            for scenario in SIDE_BY_SIDE
            if f"test_{scenario.__name__}" in chosen
        }


@pytest.fixture
def outcome(request: pytest.FixtureRequest, outcomes: dict[str, Future[Outcome]]) -> Outcome:
    """That of the scenario for which the test is named."""
    return outcomes[request.node.name].result()


def configure(folder: Path, resources: dict[str, int]) -> None:
    trainings = {
        "pretrains": {"projector": {"resources": resources}},
        "finetunes": {"qlora": {"epochs": 1, "resources": resources}},
    }
    (folder / "config" / "test.yaml").write_text(yaml.safe_dump(trainings))


def _copy(folder: Path, parent: Path) -> Path:
    copy = shutil.copytree(folder, parent / folder.name, symlinks=True)
    (copy / "results" / "tiny" / ".workflow" / "owner.json").unlink()  # which says where snakemake ran
    return copy
