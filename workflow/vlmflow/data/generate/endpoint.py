"""An OpenAI-compatible chat completions endpoint that is asked about pictures, with patience."""

from __future__ import annotations

import logging
import os
import random
import urllib.parse
from collections import Counter
from typing import Any

import openai
from openai.types.chat import ChatCompletion

from vlmflow.data.generate.answer import InvalidAnswerError, WrongFormError, read_pairs
from vlmflow.data.generate.pace import Pace
from vlmflow.data.generate.prompt import answer_schema, spelled_out
from vlmflow.data.generate.store import Answer
from vlmflow.data.generate.trouble import Trouble, judge
from vlmflow.errors import Problem, UserError

_BACKOFF = 3.0  # seconds before the second try of a picture; doubled before each further one
_LONGEST_BACKOFF = 60.0
_NO_KEY = "EMPTY"  # what local servers take for a key
_log = logging.getLogger(__name__)
logging.getLogger("httpx2").setLevel(logging.WARNING)  # it has a line to say about every request


class Endpoint:
    """Asks for the pairs of one picture at a time, from any number of threads.

    ``config`` is the data set's ``generate`` node, ``limits`` that part of it, ``prompt`` the text to send.
    """

    def __init__(self, config: dict[str, Any], limits: dict[str, Any], prompt: str) -> None:
        _check_address(config["endpoint"])
        self._config, self._attempts, self._pairs = config, limits["attempts"], config["pairs"]
        self._key = _key(config["key_variable"])
        self._client = openai.OpenAI(
            base_url=config["endpoint"], api_key=self._key or _NO_KEY, timeout=limits["timeout"], max_retries=0
        )
        self._prompt, self._spelled_out = prompt, spelled_out(prompt, self._pairs)
        self._takes_schema = self._keeps_schema = True
        self.max_side: int = config["max_side"]
        self.pace = Pace(limits["requests_per_minute"])

    def ask(self, picture: str) -> Answer | Problem:
        """The pairs about a picture (a data URL), or why there are none after all attempts.

        Raises :class:`UserError` when no picture can be answered, and
        :class:`vlmflow.data.generate.pace.StoppedError` when the stage stops.
        """
        usage: Counter[str] = Counter()
        for attempt in range(1, self._attempts + 1):
            try:
                text = _text(self._request(picture), usage)
                return Answer(read_pairs(text, self._pairs), dict(usage))
            except InvalidAnswerError as error:
                self._keeps_schema &= not isinstance(error, WrongFormError)
                trouble = Trouble(f"invalid answer: {error}", "use a stronger model, fewer `pairs` or another prompt")
            except openai.APIError as error:
                trouble = judge(error, self._config, self._key)
                if trouble.again and attempt < self._attempts:
                    self._wait(trouble, attempt)
            if not trouble.again:
                break
        return Problem(f"{trouble.reason} (attempts: {attempt})", trouble.advice)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _request(self, picture: str) -> ChatCompletion:
        """One answer; a server that refuses a JSON schema is asked in words, from then on at once."""
        if self._takes_schema:
            try:
                return self._create(picture, self._prompt if self._keeps_schema else self._spelled_out, schema=True)
            except (openai.BadRequestError, openai.UnprocessableEntityError):
                reply = self._create(picture, self._spelled_out, schema=False)  # else the picture is what it refuses
                if self._takes_schema:
                    _log.info("the server takes no JSON schema for its answers: the form is asked for in the prompt")
                self._takes_schema = False
                return reply
        return self._create(picture, self._spelled_out, schema=False)

    def _create(self, picture: str, prompt: str, *, schema: bool) -> ChatCompletion:
        form = {"name": "questions_and_answers", "strict": True, "schema": answer_schema(self._pairs)}
        self.pace.wait()
        content: list[Any] = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": prompt}]
        try:
            reply: Any = self._client.chat.completions.create(
                model=self._config["model"],
                messages=[{"role": "user", "content": content}],
                temperature=self._config["temperature"],
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
        raise InvalidAnswerError("the model refused to answer about this picture")
    if choice.finish_reason == "length":
        raise InvalidAnswerError("cut off at the server's limit of tokens; use fewer `pairs`")
    if not isinstance(content, str):
        raise InvalidAnswerError("the reply holds no text")
    return content


def _check_address(endpoint: str) -> None:
    """What goes into a manifest holds no secret."""
    parts = urllib.parse.urlsplit(endpoint)
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        advice = "a key belongs into the environment variable that `key_variable` names"
        raise UserError("the address holds a user, password or parameters", advice, field="generate.endpoint")
    if not parts.hostname:
        raise UserError("no address", "write it like http://localhost:23333/v1", field="generate.endpoint")


def _key(variable: str) -> str | None:
    key = os.environ.get(variable, "").strip() if variable else ""
    if not key.isascii() or not key.isprintable():
        raise UserError("the key holds characters that no key has", "copy it again", field=f"environment {variable}")
    return key or None
