"""`vlmflow serve`: LMDeploy's OpenAI-compatible server, started so that its prompts are those of training."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from vlmflow.chat.answerer import model_folder
from vlmflow.chat.terminal_command import port, positive
from vlmflow.errors import UserError
from vlmflow.files import read_json


def main(argv: Sequence[str]) -> None:
    """Print the command and become it; with --print only print it."""
    options = _parser().parse_args(argv)
    command = server_command(options.model, options.port, options.gpus, options.host)
    print(shlex.join(command), flush=True)
    if options.print:
        return
    program = shutil.which("lmdeploy", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if program is None:
        raise UserError(
            "lmdeploy is not installed here: it needs packages of other versions than training does",
            "conda env create -n lmdeploy -f envs/lmdeploy.yaml, then run the command above in it",
        )
    print(f"then: vlmflow chat http://{options.host}:{options.port}/v1 --image FILE", file=sys.stderr, flush=True)
    os.execv(program, command)


def server_command(model: Path, port: int, gpus: int, host: str = "127.0.0.1") -> list[str]:
    """How LMDeploy serves a model directory.

    The template is the directory's own (``hf``): LMDeploy would else choose one by words in the path.
    """
    folder = model_folder(model).resolve()
    config = read_json(folder / "config.json")
    tower = config.get("vision_config", {}).get("model_type")
    if config.get("model_type") == "llava" and tower != "clip_vision_model":
        advice = "talk to it with `vlmflow chat` or `vlmflow app`, which use transformers"
        raise UserError(f"LMDeploy has no LLaVA with a vision tower of type {tower}", advice, file=folder)
    command = ["lmdeploy", "serve", "api_server", str(folder), "--backend", "pytorch", "--chat-template", "hf"]
    named = ["--model-name", folder.name, "--server-name", host, "--server-port", str(port)]
    return [*command, *named, "--tp", str(gpus)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("vlmflow serve", description="Start LMDeploy's server for a model; needs a GPU.")
    parser.add_argument("model", type=Path, help="a model directory, such as results/converted/NAME")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default 127.0.0.1: this machine only)")
    parser.add_argument("--port", type=port, default=23333, help="default 23333")
    parser.add_argument("--gpus", type=positive, default=1, help="GPUs that the model is spread over (default 1)")
    parser.add_argument("--print", action="store_true", help="print the command, start nothing")
    return parser
