"""`vlmflow chat`: its options, and where its questions come from."""

from __future__ import annotations

import argparse
import io
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from vlmflow.chat.answerer import open_model
from vlmflow.chat.conversation import Settings


def main(argv: Sequence[str]) -> None:
    """Answer one question (--question, or what is piped in), or talk until the user leaves."""
    options = _parser().parse_args(argv)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    model = open_model(options.model, options.backend, options.adapter, options.max_tiles)
    from vlmflow.chat.terminal import Chat

    chat = Chat(model, settings_of(options), options.frames, sys.stdout, sys.stderr)
    chat.set_system(options.system)
    for picture in options.image:
        chat.attach_picture(picture)
    for video in options.video:
        chat.attach_video(video)
    if options.question is None and sys.stdin.isatty():
        chat.run(_typed_lines())
    elif not chat.ask(sys.stdin.read().strip() if options.question is None else options.question):
        sys.exit(130)


def _typed_lines() -> Iterator[str]:
    with suppress(ImportError):
        import readline  # noqa: F401 (gives input() its line editing and history)
    while True:
        try:
            yield input("> ")
        except KeyboardInterrupt:
            print()
        except EOFError:
            print()
            return


def sampling_options(parser: argparse.ArgumentParser) -> None:
    """Add how answers are made."""
    parser.add_argument("--max-new-tokens", type=positive, default=512, help="the longest answer (default 512)")
    parser.add_argument("--temperature", type=_temperature, default=0.0, help="0 (default): always the likeliest word")
    parser.add_argument("--top-p", type=_share, default=1.0, help="draw from the likeliest words with this probability")
    parser.add_argument("--seed", type=int, default=0, help="of drawing (default 0)")
    parser.add_argument("--max-tiles", type=positive, help="InternVL: tiles of all pictures (default: the model's own)")


def settings_of(options: argparse.Namespace) -> Settings:
    """What :func:`sampling_options` were given."""
    return Settings(options.max_new_tokens, options.temperature, options.top_p, options.seed)


def positive(text: str) -> int:
    """A whole number from 1."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def port(text: str) -> int:
    """A port that a server can listen at."""
    if not 1 <= (value := int(text)) <= 65535:
        raise argparse.ArgumentTypeError("must be between 1 and 65535")
    return value


def text(argument: str) -> str:
    """An argument with replacement characters for bytes that are no UTF-8."""
    return argument.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _temperature(text: str) -> float:
    if not 0 <= (value := float(text)) < math.inf:
        raise argparse.ArgumentTypeError("must be 0 or a number above")
    return value


def _share(text: str) -> float:
    if not 0 < (value := float(text)) <= 1:
        raise argparse.ArgumentTypeError("must be above 0 and at most 1")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "vlmflow chat", description="Talk with a model. Ctrl-D or /exit leaves; /help lists what else there is."
    )
    parser.add_argument("model", help="a model directory, such as results/converted/NAME, or a server's address")
    parser.add_argument("--adapter", type=Path, help="the result of a finetune over it: results/finetune/NAME")
    parser.add_argument("--image", type=Path, nargs="+", action="extend", default=[], help="shown with the question")
    parser.add_argument("--video", type=Path, nargs="+", action="extend", default=[], help="shown as --frames pictures")
    parser.add_argument("--frames", type=positive, default=8, help="pictures of each video (default 8)")
    parser.add_argument("--question", type=text, help="ask this, print the answer and leave; or pipe a question in")
    parser.add_argument("--system", type=text, default="", help="system prompt")
    parser.add_argument(
        "--backend", default="transformers", help="transformers, or a server: http://127.0.0.1:23333/v1"
    )
    sampling_options(parser)
    return parser
