"""`vlmflow app`: its options, and the page's start and end."""

from __future__ import annotations

import argparse
import errno
import os
import shlex
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from vlmflow.chat.answerer import is_address, open_model
from vlmflow.chat.terminal_command import port, positive, sampling_options, settings_of, text
from vlmflow.errors import UserError
from vlmflow.evaluation.questions import PLACE

_USERS_OF_SERVERS = 8  # whose questions servers get at the same time; a model here answers one user after the other


def main(argv: Sequence[str]) -> None:
    """Serve the page until Ctrl-C; its command and address are printed."""
    options = _parser().parse_args(argv)
    print(shlex.join(["vlmflow", "app", *argv]), file=sys.stderr, flush=True)
    for ending in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(ending) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(ending, signal.default_int_handler)  # ends as Ctrl-C does
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory(prefix="vlmflow-app-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads  # readable by this user alone, gone at the end
        _serve(options)


def _serve(options: argparse.Namespace) -> None:
    if len(options.backend) > 2:
        raise UserError(f"{len(options.backend)} back ends for two models", "name one for both, or one for each")
    _check_free(options.host, options.port)
    backends = options.backend if len(options.backend) == 2 else options.backend * 2
    asked = list(zip((options.before, options.after), backends, strict=True))
    models = [open_model(model, backend, None, options.max_tiles) for model, backend in asked]
    from vlmflow.chat.app import App
    from vlmflow.chat.examples import examples_of_predictions, examples_of_split

    examples = []
    if options.predictions:
        examples = examples_of_predictions(options.predictions, options.examples, options.prompt)
    elif options.data:
        examples = examples_of_split(options.data, options.split, options.examples, options.prompt)
    servers = all(is_address(model) or is_address(backend) for model, backend in asked)
    at_once, users = servers or _has_gpu(), _USERS_OF_SERVERS if servers else 1
    app = App(models, examples, settings_of(options), at_once, users, options.title)
    try:
        app.launch(options.host, options.port)
    except OSError as error:
        raise UserError(f"no port of {options.host} from 7860 is free", "choose one with --port") from error
    address = app.blocks.local_url
    print(f"open {address} in a browser; Ctrl-C ends", file=sys.stderr, flush=True)
    if options.host not in ("127.0.0.1", "localhost", "::1"):
        print("anybody who reaches this machine can use it: there is no password", file=sys.stderr, flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        print(file=sys.stderr)
    finally:
        app.blocks.close(verbose=False)


def _has_gpu() -> bool:
    """Whether models answer at the same time; a CPU would give each half as much."""
    import torch

    return torch.cuda.is_available()


def _check_free(host: str, number: int | None) -> None:
    """Raise :class:`UserError` unless this process may listen there; before models are loaded, which takes a while."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, number or 0), family=family).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"port {number} is in use", "choose another with --port") from error
        advice = "choose another --port from 1024, or another --host"
        raise UserError(f"cannot listen at {host}: {error.strerror}", advice) from error


def _prompt(argument: str) -> str:
    if argument.count(PLACE) != 1:
        raise argparse.ArgumentTypeError(f"write {PLACE} once, where the question is to stand")
    return text(argument)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "vlmflow app", description="A page on which two models answer side by side; for this machine only by default."
    )
    parser.add_argument("--before", required=True, help="model directory, such as results/models/NAME, or an address")
    parser.add_argument("--after", required=True, help="model directory, such as results/converted/NAME, or an address")
    parser.add_argument("--data", type=Path, help="examples from this data set: results/data/NAME/manifest.json")
    parser.add_argument("--split", default="test", help="which of its splits (default test)")
    parser.add_argument("--predictions", type=Path, help="examples from a predictions.jsonl instead")
    parser.add_argument("--prompt", type=_prompt, help="an evaluation's words for the examples' questions: {question}")
    parser.add_argument("--examples", type=positive, default=24, help="how many (default 24)")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default 127.0.0.1: this machine only)")
    parser.add_argument("--port", type=port, help="default: the first free one from 7860")
    parser.add_argument("--title", default="Before and after", help="heading of the page")
    parser.add_argument(
        "--backend", nargs="+", default=["transformers"], help="transformers, or the address of one server or of two"
    )
    sampling_options(parser)
    return parser
