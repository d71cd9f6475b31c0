"""The command line of every script: one option per parameter of the function it calls."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import logging
import os
import sys
import types
import typing
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlmflow.errors import STOPPED, Interrupted, UserError

# Threads that wait in a busy loop make training ten times slower when anything else wants a core of a small machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# At import, before the libraries are: what they have to say there is of no use to whoever reads a stage's log.
for _noisy in ("httpx", "filelock", "fsspec", "bitsandbytes"):
    logging.getLogger(_noisy).setLevel(logging.ERROR)
for _noisy in ("transformers", "torch", "accelerate", "deepspeed"):
    warnings.filterwarnings("ignore", category=FutureWarning, module=_noisy)


def run(function: Callable[..., object], argv: list[str] | None = None) -> None:
    """Parse ``--name value`` options by ``function``'s annotations, call it, and exit.

    ``Path``, ``int``, ``float`` and ``str`` take one value, ``list[...]`` several, ``dict`` and dataclasses a JSON
    object, so that the command which ``snakemake -p`` prints can be pasted into a terminal. A parameter with a default
    is optional. A :class:`UserError` ends the process with status 1 and its message alone, training that was asked to
    stop and saved its state with status 75.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    arguments = vars(_parser(function).parse_args(argv))
    try:
        function(**arguments)
    except UserError as error:
        sys.exit(f"error: {error}")
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        sys.exit(STOPPED)
    except OSError as error:  # disk full, no permission: nothing that a traceback would explain
        sys.exit(f"error: {error.filename or 'input or output'}: {error.strerror or error}")
    except KeyboardInterrupt:
        sys.exit(130)


def _parser(function: Callable[..., object]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=inspect.getdoc(function), allow_abbrev=False)
    hints = typing.get_type_hints(function)
    for name, parameter in inspect.signature(function).parameters.items():
        required = parameter.default is inspect.Parameter.empty
        kind, many = _kind(hints[name])
        parser.add_argument(
            "--" + name.replace("_", "-"),
            dest=name,
            type=_reader(kind),
            nargs="*" if many else None,
            required=required,
            default=None if required else parameter.default,
        )
    return parser


def _kind(hint: Any) -> tuple[Any, bool]:
    """The type of one value, and whether there are several: ``list[Path]`` gives ``(Path, True)``."""
    if isinstance(hint, types.UnionType):
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
    if typing.get_origin(hint) is list:
        return typing.get_args(hint)[0], True
    return hint, False


def _reader(kind: Any) -> Callable[[str], Any]:
    if dataclasses.is_dataclass(kind):
        return lambda text: typing.cast(Callable[..., Any], kind)(**_json_object(text))
    if kind is dict or typing.get_origin(kind) is dict:
        return _json_object
    return typing.cast(Callable[[str], Any], kind if kind in (Path, int, float) else str)


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"not a JSON object: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("not a JSON object")
    return value
