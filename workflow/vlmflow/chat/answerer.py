"""Which model answers: a directory here, or a server elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from vlmflow.chat.conversation import Message, Reply, Settings
from vlmflow.errors import UserError
from vlmflow.files import MANIFEST, read_json


class Answerer(Protocol):
    """A model that answers."""

    name: str

    def stream(self, messages: Sequence[Message], settings: Settings) -> Iterator[Reply]:
        """The answer to the last message, whole so far, whenever it has grown; the last one is the whole."""


def is_address(text: str) -> bool:
    """Whether this is a server's address, not a directory."""
    return text.startswith(("http://", "https://"))


def open_model(
    model: str, backend: str = "transformers", adapter: Path | None = None, max_tiles: int | None = None
) -> Answerer:
    """``model`` (a directory, its manifest.json, or the address of a server) answering by ``backend``.

    ``backend`` is transformers or the address of a server that has ``model``. Imports what it takes, and no more.
    """
    if is_address(model) or is_address(backend):
        from vlmflow.chat.remote import RemoteModel

        if adapter is not None or max_tiles is not None:
            raise UserError("adapter and tiles are the server's own affair", "leave out --adapter and --max-tiles")
        return RemoteModel(model) if is_address(model) else RemoteModel(backend, model, _reads_in_order(Path(model)))
    if backend != "transformers":
        raise UserError(f"no back end '{backend}'", "there is transformers, or an address: http://127.0.0.1:23333/v1")
    folder = model_folder(Path(model))
    trained = adapter and model_folder(adapter, MANIFEST, "the result of a finetune", "results/finetune/NAME")
    from vlmflow.chat.local import LocalModel

    return LocalModel(folder, trained, max_tiles)


def _reads_in_order(folder: Path) -> bool:
    """Whether LMDeploy leaves texts between pictures where they are: InternVL yes, LLaVA no."""
    config = folder / "config.json"
    return config.is_file() and read_json(config).get("model_type") == "internvl"


def model_folder(
    path: Path, needs: str = "config.json", what: str = "a model directory", like: str = "results/converted/NAME"
) -> Path:
    """The folder that ``path`` or its manifest names; raises :class:`UserError` unless it has the file ``needs``."""
    folder = path.parent if path.name == MANIFEST else path
    if not folder.is_dir():
        raise UserError("no such folder", f"name {what}, such as {like}", file=path)
    if not (folder / needs).is_file():
        raise UserError(f"not {what}: it has no {needs}", f"name one such as {like}", file=path)
    return folder
