"""`vlmflow app`: its options, and the page's start and end."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from vlmflow.chat.answerer import is_address, open_model
from vlmflow.chat.terminal_command import positive, sampling_options, settings_of
from vlmflow.errors import UserError


def main(argv: Sequence[str]) -> None:
    """Serve the page until Ctrl-C; its command and address are printed."""
    options = _parser().parse_args(argv)
    print(shlex.join(["vlmflow", "app", *argv]), file=sys.stderr, flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory(prefix="vlmflow-app-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads  # readable by this user alone, gone at the end
        _serve(options)


def _serve(options: argparse.Namespace) -> None:
    backends = options.backend if len(options.backend) == 2 else options.backend[:1] * 2
    asked = zip((options.before, options.after), backends, strict=True)
    models = [open_model(model, backend, None, options.max_tiles) for model, backend in asked]
    from vlmflow.chat.app import App
    from vlmflow.chat.examples import examples_of_predictions, examples_of_split

    examples = []
    if options.predictions:
        examples = examples_of_predictions(options.predictions, options.examples)
    elif options.data:
        examples = examples_of_split(options.data, options.split, options.examples)
    app = App(models, examples, settings_of(options), _at_once(options, backends), options.title)
    try:
        app.launch(options.host, options.port)
    except OSError as error:
        raise UserError(f"cannot listen at {options.host}: {error}", "choose another --port") from error
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


def _at_once(options: argparse.Namespace, backends: Sequence[str]) -> bool:
    """Both models at the same time: on GPUs and servers; a CPU would give each half as much."""
    if all(map(is_address, backends)) or (is_address(options.before) and is_address(options.after)):
        return True
    import torch

    return torch.cuda.is_available()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "vlmflow app", description="A page on which two models answer side by side; for this machine only by default."
    )
    parser.add_argument("--before", required=True, help="model directory, such as results/models/NAME, or an address")
    parser.add_argument("--after", required=True, help="model directory, such as results/converted/NAME, or an address")
    parser.add_argument("--data", type=Path, help="examples from this data set: results/data/NAME/manifest.json")
    parser.add_argument("--split", default="test", help="which of its splits (default test)")
    parser.add_argument("--predictions", type=Path, help="examples from a predictions.jsonl instead")
    parser.add_argument("--examples", type=positive, default=24, help="how many (default 24)")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default 127.0.0.1: this machine only)")
    parser.add_argument("--port", type=positive, help="default: the first free one from 7860")
    parser.add_argument("--title", default="Before and after", help="heading of the page")
    parser.add_argument(
        "--backend", nargs="+", default=["transformers"], help="transformers, or the address of one server or of two"
    )
    sampling_options(parser)
    return parser
