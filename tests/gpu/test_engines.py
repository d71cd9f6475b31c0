"""On a GPU: merged models answer in LMDeploy's PyTorch engine as in transformers (benchmarks/engines.py)."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
HOW = "run `python -m pytest -m gpu tests/gpu` on a machine with a CUDA device and LMDeploy 0.18"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason=f"no CUDA device; {HOW}"),
    pytest.mark.skipif(importlib.util.find_spec("lmdeploy") is None, reason=f"no LMDeploy; {HOW}"),
]


@pytest.mark.parametrize("family", ["llava", "internvl"])
def test_engines_agree(family: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "engines.py"), "--family", family, "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (tmp_path / "engines.json").is_file(), done.stderr[-3000:]
    result = json.loads((tmp_path / "engines.json").read_text(encoding="utf-8"))
    assert result["missed"] == []
    for directory in ("merged", "converted"):
        for engine in ("transformers_alone", "lmdeploy"):
            figures = result["families"][family][directory][engine]
            assert figures["equal_prompts"] == 1
            assert figures["equal_answers"] >= 0.95
    assert done.returncode == 0
