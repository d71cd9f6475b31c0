"""The command vlmflow: its list, what a wrong word gets, and how LMDeploy is started."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from vlmflow.files import write_json
from vlmflow.main import COMMANDS, main

WORKFLOW = Path(__file__).parents[2] / "workflow"


def test_help_lists_all_and_imports_nothing_heavy() -> None:
    program = "import sys; from vlmflow.main import main; main(['--help']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=WORKFLOW, capture_output=True, text=True, check=True)
    *shown, modules = done.stdout.splitlines()
    assert all(any(line.split()[:1] == [name] for line in shown) for name in COMMANDS)
    assert not any(f"'{heavy}'" in modules for heavy in ("torch", "transformers", "gradio", "openai", "PIL", "numpy"))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_tells_its_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0 and f"usage: vlmflow {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["chart"], "error: no command 'chart'"),
        (["chat", "nowhere", "--question", "a"], "error: nowhere: no such folder\n    -> "),
        (["serve", "nowhere"], "error: nowhere: no such folder"),
        (["app", "--before", "nowhere", "--after", "nowhere"], "error: nowhere: no such folder"),
    ],
)
def test_what_is_wrong_is_said_in_one_message(words: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert str(ended.value.code).startswith(message)


def test_lmdeploy_gets_the_directorys_own_template(
    tiny_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_model.parent.resolve()
    main(["serve", str(tiny_model), "--port", "5000", "--gpus", "2", "--print"])
    printed = capsys.readouterr().out
    assert shlex.split(printed) == [
        "lmdeploy", "serve", "api_server", str(folder), "--backend", "pytorch", "--chat-template", "hf",
        "--model-name", folder.name, "--server-name", "127.0.0.1", "--server-port", "5000", "--tp", "2",
    ]  # fmt: skip
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit) as ended:
        main(["serve", str(tiny_model)])
    assert "lmdeploy is not installed here" in str(ended.value.code) and "envs/lmdeploy.yaml" in str(ended.value.code)


def test_a_model_that_lmdeploy_has_not_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"model_type": "llava", "vision_config": {"model_type": "dinov2"}})
    with pytest.raises(SystemExit) as ended:
        main(["serve", str(tmp_path), "--print"])
    assert "no LLaVA with a vision tower of type dinov2" in str(ended.value.code)
