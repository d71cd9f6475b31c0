"""Annotations read by a process of their own, while this one looks at the pictures they name."""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Iterator
from multiprocessing.connection import Connection

import msgspec

from vlmflow.data.annotations import Annotations
from vlmflow.data.formats.draft import Draft

_BATCH = 1024  # drafts that are handed over at once


def read_ahead(annotations: Annotations) -> Iterator[list[Draft]]:
    """The drafts in batches; ``annotations`` has its counts and problems when the last one was taken.

    Raises what reading raises, and :class:`RuntimeError` when the reading process dies.
    """
    context = multiprocessing.get_context("fork")  # nothing has to be imported or sent there
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_read, args=(annotations, sender), daemon=True)
    process.start()
    sender.close()
    decoder = msgspec.msgpack.Decoder(list[Draft])
    try:
        while batch := receiver.recv_bytes():
            yield decoder.decode(batch)
        outcome = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"the process that reads annotations died: exit status {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
    if isinstance(outcome, BaseException):
        raise outcome
    annotations.counts, annotations.problems = outcome


def _read(annotations: Annotations, sender: Connection) -> None:
    encoder, drafts = msgspec.msgpack.Encoder(), iter(annotations)
    try:
        while batch := list(itertools.islice(drafts, _BATCH)):
            sender.send_bytes(encoder.encode(batch))
        outcome: object = (annotations.counts, annotations.problems)
    except Exception as error:
        outcome = error
    sender.send_bytes(b"")
    sender.send(outcome)
