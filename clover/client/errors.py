"""Errors that a caller of a server meets: those of the server by their status, and that it cannot be reached."""

from __future__ import annotations

import json

from clover.client.messages import Reply
from clover.errors import (
    BadRequest,
    CloverError,
    Conflict,
    DeadlineMissed,
    ModelFailed,
    NotFound,
    Overloaded,
    RequestError,
    TooLarge,
    Unavailable,
)

_CLASSES: dict[int, type[RequestError]] = {
    one.status: one
    for one in (BadRequest, NotFound, Conflict, TooLarge, Overloaded, ModelFailed, Unavailable, DeadlineMissed)
}


class ServerUnreachable(CloverError):
    """No answer came: the server does not listen there, or the connection broke."""


def error_of(reply: Reply) -> CloverError:
    """Return the error of an answer that is none of success: `status` and `retry_after_s` are the answer's."""
    if not reply.status:
        return ServerUnreachable(f"the server gave no answer: {reply.error}")
    error = _CLASSES.get(reply.status, RequestError)(_text(reply), retry_after_s=retry_after_s(reply))
    error.status = reply.status
    return error


def retry_after_s(reply: Reply) -> float | None:
    """Return the seconds of Retry-After; None without one, or if it is a date."""
    text = reply.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() else None


def _text(reply: Reply) -> str:
    """Return what the server said, in its own form or in OpenAI's."""
    try:
        said = json.loads(reply.body)["error"]
        text = said["message"] if isinstance(said, dict) else said
    except (ValueError, KeyError, TypeError, RecursionError):
        text = ""
    return str(text) or f"the server answered {reply.status}"
