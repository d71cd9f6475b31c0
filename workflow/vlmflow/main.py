"""The command `vlmflow`: its subcommands, each loaded when it is asked for. Imports nothing heavy."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import vlmflow.cli  # noqa: F401 (keeps libraries quiet that are imported later)
from vlmflow.errors import UserError

COMMANDS = {
    "chat": ("vlmflow.chat.terminal_command:main", "talk with a model in the terminal, about pictures and videos"),
    "app": (
        "vlmflow.chat.app_command:main",
        "a page on which two models answer side by side, before and after training",
    ),
    "serve": ("vlmflow.chat.lmdeploy_command:main", "start LMDeploy's OpenAI-compatible server for a model"),
    "import": ("vlmflow.field.commands:import_main", "predictions of lmms-eval or VLMEvalKit as ours"),
    "compare": ("vlmflow.field.commands:compare_main", "paired statistics of two files of predictions, ours or theirs"),
    "export": ("vlmflow.field.commands:export_main", "predictions as lmms-eval or VLMEvalKit has them, to score there"),
}
"""Name -> the function that runs it, given the arguments after the name, and what it does."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one subcommand and exit; a :class:`UserError` ends the process with status 1 and its message alone."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(_help())
        return
    if name not in COMMANDS:
        sys.exit(f"error: no command '{name}'\n    -> there is {', '.join(COMMANDS)}; vlmflow --help")
    module, _, function = COMMANDS[name][0].partition(":")
    try:
        getattr(importlib.import_module(module), function)(arguments[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:  # no permission, disk full: nothing that a traceback would explain
        sys.exit(f"error: {error.filename or 'input or output'}: {error.strerror or error}")
    except KeyboardInterrupt:
        sys.exit(130)


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: vlmflow COMMAND [OPTIONS]",
            "",
            *lines,
            "",
            "vlmflow COMMAND --help tells the options of one. Training and evaluation are Snakemake's: see the README.",
        ]
    )
