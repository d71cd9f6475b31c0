"""A model behind an OpenAI-compatible server (LMDeploy's api_server, vLLM), asked with the openai client."""

from __future__ import annotations

import base64
import os
import re
import urllib.parse
from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import Any

import openai
from PIL import Image

from vlmflow.chat.conversation import PLACEHOLDER, Message, Reply, Settings
from vlmflow.data.report import shown
from vlmflow.errors import UserError

KEY = "VLMFLOW_API_KEY"
"""Environment variable with the server's key, if it wants one."""
_PATIENCE = 600.0  # seconds without a word from the server
_PLACE = re.compile(rf"(Frame\d+: )?{PLACEHOLDER}\n?")


class RemoteModel:
    """The model called ``model`` at ``address`` (http://HOST:PORT/v1), or the only one there.

    The server renders the prompt, by the template in the model's directory if it was started by `vlmflow serve`. Texts
    between pictures stay there if it reads them ``in_order``; else they come after all pictures.
    """

    def __init__(self, address: str, model: str = "", in_order: bool = False) -> None:
        _check(address)
        self._address, self._in_order = address, in_order
        self._key = os.environ.get(KEY, "").strip()
        self._client: Any = openai.OpenAI(
            base_url=address, api_key=self._key or "EMPTY", timeout=_PATIENCE, max_retries=0
        )
        self.name = self._find(model)

    def _find(self, model: str) -> str:
        """The server's name for ``model``, which may be a directory."""
        try:
            known = [one.id for one in self._client.models.list().data or ()]
        except (openai.OpenAIError, ValueError, TypeError) as error:
            raise self._trouble(error) from error
        last = model.rstrip("/").removesuffix("/manifest.json").rpartition("/")[2]
        for name in known:
            if last and name.rstrip("/").rpartition("/")[2] == last:
                return name
        if len(known) == 1 and not model:
            return known[0]
        raise UserError(f"no model '{model}' there", f"it has {', '.join(known) or 'none'}", file=self._address)

    def stream(self, messages: Sequence[Message], settings: Settings) -> Iterator[Reply]:
        """The answer to the last message, whole so far, whenever it has grown."""
        text, finish = "", None
        try:
            with self._client.chat.completions.create(
                model=self.name,
                messages=[{"role": one.role, "content": content(one, self._in_order)} for one in messages],
                max_tokens=settings.max_new_tokens,
                temperature=settings.temperature,
                top_p=settings.top_p,
                seed=settings.seed,
                stream=True,
            ) as chunks:
                for chunk in chunks:
                    choice: Any = chunk.choices[0] if chunk.choices else None
                    if choice and choice.delta and choice.delta.content:
                        text += choice.delta.content
                        yield Reply(text.strip())
                    finish = (choice and choice.finish_reason) or finish
        except (openai.OpenAIError, ValueError, TypeError) as error:
            raise self._trouble(error) from error
        yield Reply(text.strip(), cut=finish == "length")

    def _trouble(self, error: Exception) -> UserError:
        text = str(getattr(error, "message", error))
        said = shown(text.replace(self._key, "(key)") if self._key else text, 300)  # some servers repeat it
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            return UserError(f"not allowed: {said}", f"put its key into {KEY} (environment)", file=self._address)
        if isinstance(error, openai.APIConnectionError):
            advice = "start it (vlmflow serve MODEL), or check the address; it ends in /v1 on most servers"
            return UserError(f"no connection: {said}", advice, file=self._address)
        return UserError(f"the server refuses: {said}", "its log tells more", file=self._address)


def content(message: Message, in_order: bool) -> str | list[dict[str, Any]]:
    """A message as OpenAI's API takes it: plain text, or pictures (PNG as data URLs) and texts.

    Not ``in_order``, pictures come first and the text is one item: of several, LMDeploy's LLaVA would read the first
    alone. It puts a line feed after each picture itself.
    """
    if not message.pictures:
        return message.text
    seen = [{"type": "image_url", "image_url": {"url": _data_url(picture)}} for picture in message.pictures]
    if not in_order:
        return [*seen, _text(_PLACE.sub("", message.text))]
    first, *rest = message.text.split(PLACEHOLDER)
    parts: list[dict[str, Any]] = [_text(first)] if first else []
    for picture, text in zip(seen, rest, strict=True):
        parts += [picture, _text(text.removeprefix("\n"))]
    return [part for part in parts if part.get("text") != ""]


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _data_url(picture: Image.Image) -> str:
    buffer = BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _check(address: str) -> None:
    parts = urllib.parse.urlsplit(address)
    if parts.username or parts.password or parts.query:
        raise UserError("the address holds a user, password or parameters", f"put a key into {KEY} (environment)")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"no address: {address}", "write it like http://127.0.0.1:23333/v1")
