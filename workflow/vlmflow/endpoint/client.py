"""An OpenAI-compatible chat completions endpoint."""

from __future__ import annotations

import logging
import os
import random
import urllib.parse
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import openai
from openai.types.chat import ChatCompletion

from vlmflow.endpoint.pace import Pace
from vlmflow.endpoint.reply import InvalidAnswerError, WrongFormError
from vlmflow.endpoint.trouble import Trouble, trouble_of
from vlmflow.errors import Problem, UserError

_BACKOFF = 3.0  # seconds before the second try of a question; doubled before each further one
_LONGEST_BACKOFF = 60.0
_NO_KEY = "EMPTY"  # what local servers take for a key
_log = logging.getLogger(__name__)
logging.getLogger("httpx2").setLevel(logging.WARNING)  # it has a line to say about every request


class Form(NamedTuple):
    """What an answer must be: a JSON schema, the same in words for servers that take none, and who reads it.

    ``read`` raises :class:`vlmflow.endpoint.reply.InvalidAnswerError`; ``advice`` is for a user whose model never
    gives a valid one.
    """

    name: str
    schema: dict[str, Any]
    in_words: str
    read: Callable[[str], Any]
    advice: str


class Reply(NamedTuple):
    """What ``Form.read`` made of an answer, and the tokens that it took as the server counts them, failed tries too."""

    value: Any
    usage: dict[str, int]


class Endpoint:
    """Asks one question at a time, from any number of threads.

    ``config`` has endpoint, model, temperature (null: the server's own) and key_variable; ``limits`` attempts, timeout
    (seconds) and requests_per_minute. ``node`` names the part of the configuration that holds them.
    """

    def __init__(self, config: dict[str, Any], limits: dict[str, Any], form: Form, node: str) -> None:
        _check_address(config["endpoint"], f"{node}.endpoint")
        self._config, self._attempts, self._form = config, limits["attempts"], form
        self._key = _key(config["key_variable"])
        self._client = openai.OpenAI(
            base_url=config["endpoint"], api_key=self._key or _NO_KEY, timeout=limits["timeout"], max_retries=0
        )
        self._takes_schema = self._keeps_schema = True
        self.pace = Pace(limits["requests_per_minute"])

    def ask(self, prompt: str, pictures: Sequence[str] = ()) -> Reply | Problem:
        """The answer to ``prompt`` about ``pictures`` (data URLs), or why there is none after all attempts.

        Raises :class:`UserError` when no question can be answered, and
        :class:`vlmflow.endpoint.pace.StoppedError` when the stage stops.
        """
        usage: Counter[str] = Counter()
        for attempt in range(1, self._attempts + 1):
            try:
                text = _text(self._request(prompt, pictures), usage)
                return Reply(self._form.read(text), dict(usage))
            except InvalidAnswerError as error:
                self._keeps_schema &= not isinstance(error, WrongFormError)
                trouble = Trouble(f"invalid answer: {error}", self._form.advice)
            except openai.APIError as error:
                trouble = trouble_of(error, self._config, self._key)
                if trouble.again and attempt < self._attempts:
                    self._wait(trouble, attempt)
            if not trouble.again:
                break
        return Problem(f"{trouble.reason} (attempts: {attempt})", trouble.advice)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _request(self, prompt: str, pictures: Sequence[str]) -> ChatCompletion:
        """One answer; a server that refuses a JSON schema is asked in words, from then on at once."""
        worded = f"{prompt}\n\n{self._form.in_words}"
        if self._takes_schema:
            try:
                return self._create(prompt if self._keeps_schema else worded, pictures, schema=True)
            except (openai.BadRequestError, openai.UnprocessableEntityError):
                reply = self._create(worded, pictures, schema=False)  # else it is the question that it refuses
                if self._takes_schema:
                    _log.info("the server takes no JSON schema for its answers: the form is asked for in the prompt")
                self._takes_schema = False
                return reply
        return self._create(worded, pictures, schema=False)

    def _create(self, prompt: str, pictures: Sequence[str], *, schema: bool) -> ChatCompletion:
        form = {"name": self._form.name, "strict": True, "schema": self._form.schema}
        seen: list[Any] = [{"type": "image_url", "image_url": {"url": url}} for url in pictures]
        self.pace.wait()
        try:
            reply: Any = self._client.chat.completions.create(
                model=self._config["model"],
                messages=[{"role": "user", "content": [*seen, {"type": "text", "text": prompt}] if seen else prompt}],
                temperature=openai.omit if self._config["temperature"] is None else self._config["temperature"],
                response_format={"type": "json_schema", "json_schema": form} if schema else openai.omit,  # type: ignore[arg-type]
            )
        except (ValueError, TypeError) as error:  # of the parser: the client lets them through
            raise InvalidAnswerError("the server's reply is no JSON") from error
        if not isinstance(reply, ChatCompletion):
            raise InvalidAnswerError("the server's reply is no chat completion; is the address right?")
        return reply

    def _wait(self, trouble: Trouble, attempt: int) -> None:
        """Wait as long as the server asks, else twice as long as the last time, a little shorter by chance."""
        backoff = min(_LONGEST_BACKOFF, _BACKOFF * 2 ** (attempt - 1)) * random.uniform(0.75, 1)
        seconds = backoff if trouble.pause is None else trouble.pause
        _log.warning("%s; next try in %.0f s", trouble.reason, seconds)
        if trouble.shared:
            self.pace.hold(seconds)
        else:
            self.pace.sleep(seconds)


def _text(reply: ChatCompletion, usage: Counter[str]) -> str:
    """What the model said; what it took is added to ``usage``. Nothing in a reply is sure to be there."""
    for name in ("prompt_tokens", "completion_tokens"):
        count = getattr(reply.usage, name, None)
        if isinstance(count, int):
            usage[name] += count
    if not isinstance(reply.choices, list) or not reply.choices:
        raise InvalidAnswerError("the server's reply holds no choice")
    choice = reply.choices[0]
    refusal, content = getattr(choice.message, "refusal", None), getattr(choice.message, "content", None)
    if refusal or choice.finish_reason == "content_filter":
        raise InvalidAnswerError("the model refused to answer")
    if choice.finish_reason == "length":
        raise InvalidAnswerError("cut off at the server's limit of tokens")
    if not isinstance(content, str):
        raise InvalidAnswerError("the reply holds no text")
    return content


def _check_address(endpoint: str, field: str) -> None:
    """What goes into a manifest holds no secret."""
    parts = urllib.parse.urlsplit(endpoint)
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        advice = "a key belongs into the environment variable that `key_variable` names"
        raise UserError("the address holds a user, password or parameters", advice, field=field)
    if not parts.hostname:
        raise UserError("no address", "write it like http://localhost:23333/v1", field=field)


def _key(variable: str) -> str | None:
    key = os.environ.get(variable, "").strip() if variable else ""
    if not key.isascii() or not key.isprintable():
        raise UserError("the key holds characters that no key has", "copy it again", field=f"environment {variable}")
    return key or None
