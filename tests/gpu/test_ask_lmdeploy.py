"""On a GPU: the LMDeploy back end answers as transformers does, resumes, and says what it cannot load."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from engines_data import make_records  # noqa: E402
from engines_model import make_directories  # noqa: E402

from vlmflow.data.records import write_records  # noqa: E402
from vlmflow.files import read_json, write_manifest  # noqa: E402

HOW = "run `python -m pytest -m gpu tests/gpu` on a machine with a CUDA device and LMDeploy 0.18"
SCRIPTS = ROOT / "workflow" / "scripts"
CONFIG = {"split": "test", "limit": None, "prompt": None, "max_new_tokens": 48, "max_tiles": None}
LMDEPLOY = {"cache_share": 0.2, "cache_bits": 16, "max_batch_size": None}
COUNT = 96

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason=f"no CUDA device; {HOW}"),
    pytest.mark.skipif(importlib.util.find_spec("lmdeploy") is None, reason=f"no LMDeploy; {HOW}"),
]


@pytest.fixture(scope="module", params=["llava", "internvl"])
def asked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Manifests of a small model that has learnt its task, and of a data set with questions of eight kinds."""
    folder = tmp_path_factory.mktemp(request.param)
    model = make_directories(request.param, folder, 1536, 10).converted
    records = make_records(folder / "questions" / "pictures", COUNT, seed=1)
    for split in ("train", "validation", "test"):
        write_records(folder / "questions" / f"{split}.jsonl", records if split == "test" else [])
    write_manifest(folder / "questions")
    return model, folder / "questions" / "manifest.json"


def command(engine: str, model: Path, data: Path, folder: Path, shard: str = "1-of-1") -> list[str]:
    config = {**CONFIG, "backend": engine, **({"lmdeploy": LMDEPLOY} if engine == "lmdeploy" else {})}
    output = folder / "evaluate" / "held-out" / "converted-x" / "answers" / f"{shard}.json"
    named = {"config": json.dumps(config), "model": model, "checkpoint": "converted-x", "data": data, "shard": shard,
             "cache": folder / "cache", "output": output}  # fmt: skip
    named["gpus" if engine == "lmdeploy" else "batch-size"] = 1 if engine == "lmdeploy" else 8
    words = [word for name, value in named.items() for word in (f"--{name}", str(value))]
    return [sys.executable, str(SCRIPTS / f"ask_{engine}.py"), *words]


def answers(folder: Path, shard: str = "1-of-1") -> list[dict[str, Any]]:
    path = folder / "evaluate" / "held-out" / "converted-x" / "answers" / f"{shard}.json"
    found: list[dict[str, Any]] = read_json(path)["answers"]
    return found


def test_both_engines_get_the_same_prompts_and_give_nearly_the_same_answers(
    asked: tuple[Path, Path], tmp_path: Path
) -> None:
    model, data = asked
    for engine in ("lmdeploy", "transformers"):
        subprocess.run(command(engine, model, data, tmp_path / engine), check=True)
    ours, theirs = answers(tmp_path / "transformers"), answers(tmp_path / "lmdeploy")
    pairs = list(zip(ours, theirs, strict=True))
    assert [one["id"] for one, other in pairs if one["prompt"] != other["prompt"]] == []
    different = [(one, other) for one, other in pairs if one["prediction"] != other["prediction"]]
    assert len(different) <= 0.05 * COUNT, different
    assert {each["finish"] for each in theirs} == {"stop"}


def test_a_killed_run_goes_on_with_what_is_missing(asked: tuple[Path, Path], tmp_path: Path) -> None:
    model, data = asked
    asking = subprocess.Popen(command("lmdeploy", model, data, tmp_path), start_new_session=True)
    while asking.poll() is None and not any(path.stat().st_size for path in tmp_path.glob("cache/*/*.jsonl")):
        time.sleep(0.02)
    os.killpg(asking.pid, signal.SIGKILL)
    asking.wait()
    kept = sum(
        len(json.loads(line)) for path in tmp_path.glob("cache/*/*.jsonl") for line in path.read_text().splitlines()
    )
    assert kept
    subprocess.run(command("lmdeploy", model, data, tmp_path), check=True)
    assert len({each["id"] for each in answers(tmp_path)}) == len(answers(tmp_path)) == COUNT
    facts = read_json(tmp_path / "evaluate" / "held-out" / "converted-x" / "answers" / "1-of-1.json")["facts"]
    assert facts["asked"] <= COUNT - kept
