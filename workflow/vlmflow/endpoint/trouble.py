"""What an error of the endpoint means: try again, give this question up, or stop the stage."""

from __future__ import annotations

import email.utils
import math
import time
from typing import Any, NamedTuple

import openai

from vlmflow.data.report import shown
from vlmflow.errors import UserError

_LONGEST_PAUSE = 600.0  # seconds; a server that asks for more has a quota that is used up, not a busy moment
_KEEPS = "What is answered is kept: run again later, and only the rest is asked"


class Trouble(NamedTuple):
    """Why a request brought nothing; ``again`` tells whether another one may, ``shared`` whether all requests wait.

    ``pause`` is in seconds as the server asks for it, or None.
    """

    reason: str
    advice: str
    again: bool = True
    pause: float | None = None
    shared: bool = False


def trouble_of(error: openai.APIError, config: dict[str, Any], key: str | None) -> Trouble:
    """Sort an error; raises :class:`UserError` when no request can succeed. ``key`` is removed from what is shown."""
    said = _said(error, key)
    if isinstance(error, openai.APITimeoutError):
        return Trouble(f"no answer in time: {said}", "raise `timeout`, or lower `parallel`, under `limits`")
    if not isinstance(error, openai.APIStatusError):
        return Trouble(f"no connection: {said}", f"check that a server listens at {config['endpoint']}")
    status, pause = error.status_code, _retry_after(error.response.headers.get("retry-after"))
    _stop_if_hopeless(status, error.code, pause, said, config)
    again = status in (408, 409, 425, 429) or status >= 500
    reason = f"{'server error' if again else 'request refused'}: {status}: {said}"
    if status == 429:
        advice = "lower `parallel` or set `requests_per_minute` under `limits`, then run again"
    else:
        advice = (
            "look at the server's log, then run again"
            if again
            else "lower `max_side`, shorten the prompt, or use a model with a longer context"
        )
    return Trouble(reason, advice, again, pause, shared=status in (429, 503))


def _stop_if_hopeless(status: int, code: str | None, pause: float | None, said: str, config: dict[str, Any]) -> None:
    place = {"file": config["endpoint"]}
    if status in (401, 403):
        advice = f"put the server's key into the environment variable {config['key_variable']} (`key_variable`)"
        raise UserError(f"not allowed: {status}: {said}", advice, **place)
    if status == 404:
        advice = (
            f"`model` ({config['model']}) must be one of those that {config['endpoint'].rstrip('/')}/models lists, "
            "and `endpoint` ends in /v1 on most servers"
        )
        raise UserError(f"unknown model or address: 404: {said}", advice, **place)
    if status == 402 or code == "insufficient_quota":
        raise UserError(f"no credit: {status}: {said}", f"check your account there. {_KEEPS}", **place)
    if pause is not None and pause > _LONGEST_PAUSE:
        raise UserError(f"the server wants a pause of {pause / 60:.0f} minutes: {status}: {said}", _KEEPS, **place)


def _said(error: openai.APIError, key: str | None) -> str:
    """The server's own words, or those of the connection, on one line; some servers repeat the key in them."""
    body = error.body.get("message") if isinstance(error.body, dict) else error.body
    text = str(body or error.__cause__ or error.message)
    return shown(text.replace(key, "(key)") if key else text, 200)


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which holds a number or a date."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
