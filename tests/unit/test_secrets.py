"""Secrets leave the environment that jobs get, and come back only where a job asks for them on the same machine."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from vlmflow import secrets

WORKFLOW = Path(__file__).parents[2] / "workflow"
SECRET = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MODELSCOPE_API_TOKEN", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY",
          "MY_SECRET", "DB_PASSWORD", "pgpassword")  # fmt: skip
PLAIN = ("PATH", "HOME", "TOKENIZERS_PARALLELISM", "SLURM_JOB_ID", "CUDA_VISIBLE_DEVICES", "KEYBOARD")


def test_what_looks_like_a_secret_is_moved_and_comes_back() -> None:
    environment = dict.fromkeys((*SECRET, *PLAIN), "ü value")
    secrets.hide(environment)
    assert set(environment) == {*PLAIN, secrets.HELD}
    assert stat.S_IMODE(Path(environment[secrets.HELD]).stat().st_mode) == 0o600
    secrets.take_back(environment)
    assert environment == dict.fromkeys((*SECRET, *PLAIN), "ü value")


def test_variables_can_be_named_and_kept() -> None:
    environment = {"TEACHER": "1", "HF_TOKEN": "2", "WANDB_API_KEY": "3"}
    secrets.hide(environment, also=["TEACHER"], but=["WANDB_API_KEY"])
    assert set(environment) == {"WANDB_API_KEY", secrets.HELD}


def test_nothing_to_hide_leaves_everything_as_it_is() -> None:
    environment = {"PATH": "/bin"}
    secrets.hide(environment)
    secrets.take_back(environment)
    assert environment == {"PATH": "/bin"}


def test_a_child_process_takes_them_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "mine")
    monkeypatch.setenv(secrets.HELD, "")
    secrets.hide(os.environ)
    code = "import os; from vlmflow import secrets; print(os.environ.get('HF_TOKEN'));"
    code += "secrets.take_back(os.environ); print(os.environ['HF_TOKEN'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=WORKFLOW, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["None", "mine"]
    secrets.take_back(os.environ)


def test_nothing_is_left_of_a_killed_process() -> None:
    code = "import os; from vlmflow import secrets; secrets.hide(os.environ);"
    code += "print(os.environ[secrets.HELD], flush=True); input()"
    environment = {**os.environ, "HF_TOKEN": "mine"}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=WORKFLOW, env=environment, stdin=pipe, stdout=pipe
    ) as child:
        assert child.stdout
        file = Path(os.fsdecode(child.stdout.readline().strip()))
        assert "mine" in file.read_text()
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert not file.exists()
