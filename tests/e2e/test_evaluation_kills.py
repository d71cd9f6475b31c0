"""An evaluation that is killed at any moment and started again ends in the answers of an undisturbed one."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from conftest import make_tiny_data, make_tiny_model, read_lines
from vlmflow.data.records import read_records
from vlmflow.evaluation.ask_transformers import ask_transformers
from vlmflow.evaluation.score import score_answers
from vlmflow.files import read_json

CONFIG = {"split": "train", "limit": None, "prompt": None, "backend": "transformers", "max_new_tokens": 24,
          "max_tiles": None}  # fmt: skip
COUNT = 100
CHECKPOINT = "converted-x"
SHARDS = ["1-of-2", "2-of-2"]


@dataclass(frozen=True)
class Evaluation:
    """Questions to a tiny model, which can be asked in folders of their own."""

    model: Path
    data: Path
    root: Path

    def start(self, name: str, shard: str) -> BaseProcess:
        """Ask one part, in batches of two, in a process of its own, which has all modules."""
        arguments = (CONFIG, self.model, CHECKPOINT, self.data, shard, 2, self.root / name / "cache",
                     self.answers(name, shard))  # fmt: skip
        asking = multiprocessing.get_context("forkserver").Process(target=ask_transformers, args=arguments)
        asking.start()
        return asking

    def answers(self, name: str, shard: str) -> Path:
        return self.root / name / "e" / CHECKPOINT / "answers" / f"{shard}.json"

    def kept(self, name: str) -> int:
        """Lines that are whole in the folder where answers are kept."""
        return sum(file.read_bytes().count(b"\n") for file in (self.root / name).glob("cache/*/*.jsonl"))

    def finish(self, name: str) -> None:
        """Ask what is missing of all parts at once."""
        for asking in [self.start(name, shard) for shard in SHARDS]:
            asking.join()
            assert asking.exitcode == 0

    def predictions(self, name: str) -> bytes:
        """The content of predictions.jsonl."""
        output = self.root / name / "e" / CHECKPOINT / "scores.json"
        parts = [self.answers(name, shard) for shard in SHARDS]
        score_answers({**CONFIG, "metrics": ["exact_match"], "chinese": "keep"}, CHECKPOINT, parts, self.data, output)
        return output.with_name("predictions.jsonl").read_bytes()

    def asked(self, name: str) -> int:
        """Questions that the last start of each part asked."""
        return sum(read_json(self.answers(name, shard))["facts"]["asked"] for shard in SHARDS)


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evaluation]:
    """One that has been finished undisturbed, under the name ``undisturbed``."""
    root = tmp_path_factory.mktemp("kills")
    made = Evaluation(make_tiny_model(root, tie=False), make_tiny_data(root / "data", COUNT + 8), root)
    multiprocessing.set_forkserver_preload([ask_transformers.__module__])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        made.finish("undisturbed")
        yield made


def kill(asking: BaseProcess) -> bool:
    """Whether it was still running."""
    running = asking.is_alive()
    asking.kill()
    asking.join()
    return running


def check(evaluation: Evaluation, name: str) -> None:
    """No record twice, none missing, and every byte as if nothing had happened."""
    predictions = evaluation.predictions(name)
    assert predictions == evaluation.predictions("undisturbed")
    lines = read_lines(evaluation.root / name / "e" / CHECKPOINT / "predictions.jsonl")
    assert [line["id"] for line in lines] == [
        record.id for record in read_records(evaluation.data.with_name("train.jsonl"))
    ]
    for shard in SHARDS:
        assert (
            read_json(evaluation.answers(name, shard))["answers"]
            == read_json(evaluation.answers("undisturbed", shard))["answers"]
        )


def test_killed_while_it_asks(evaluation: Evaluation) -> None:
    """Both parts three times, a few answers after they started to come."""
    for _ in range(3):
        before, both = evaluation.kept("killed"), [evaluation.start("killed", shard) for shard in SHARDS]
        while evaluation.kept("killed") < before + 8 and all(each.is_alive() for each in both):
            time.sleep(0.005)
        killed = [kill(asking) for asking in both]
        assert all(killed), "they ended before they could be killed"
    assert not list(evaluation.root.glob("killed/e/*/answers/*.json"))
    kept = evaluation.kept("killed")
    evaluation.finish("killed")
    assert 0 < evaluation.asked("killed") <= COUNT - 2 * kept
    check(evaluation, "killed")


@pytest.mark.slow
def test_killed_at_random_moments(evaluation: Evaluation) -> None:
    """Twenty times; one part or both; evaluations that end in the meantime are begun anew."""
    moments, kills, asking_then, runs = random.Random(0), 0, 0, 0
    started, timed = time.monotonic(), evaluation.start("timed", SHARDS[0])
    timed.join()
    seconds = time.monotonic() - started
    while kills < 20:
        name, runs = f"random-{runs}", runs + 1
        while kills < 20 and len(list(evaluation.root.glob(f"{name}/e/*/answers/*.json"))) < len(SHARDS):
            before = evaluation.kept(name)
            shards = moments.choice([SHARDS, SHARDS[:1], SHARDS[1:]])
            chosen = [evaluation.start(name, shard) for shard in shards]
            time.sleep(moments.uniform(0, seconds))
            killed = [kill(asking) for asking in chosen]
            kills += any(killed)
            asking_then += any(killed) and evaluation.kept(name) > before
        evaluation.finish(name)
        check(evaluation, name)
    assert asking_then >= 3, "nearly all were killed before they got an answer"
