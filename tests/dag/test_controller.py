"""Snakemake itself needs none of the libraries that its jobs use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from repository import ENVIRONMENT

ROOT = Path(__file__).parents[2]
JOBS_ONLY = (
    *("torch", "torchvision", "transformers", "tokenizers", "safetensors", "peft", "accelerate", "bitsandbytes"),
    *("deepspeed", "liger_kernel", "lmdeploy", "huggingface_hub", "PIL", "sklearn", "jsonschema_rs", "orjson"),
)
WITHOUT = f"""
import sys
sys.modules.update(dict.fromkeys({JOBS_ONLY}))
from snakemake.cli import main
main(["-n", "--forceall"])
"""


def test_a_dry_run_imports_nothing_that_only_jobs_need() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], cwd=ROOT, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert "train_adapter" in done.stdout + done.stderr
