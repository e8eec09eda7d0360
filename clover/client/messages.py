"""What a call asks of its driver, what comes back, and what an answer means: an error, or another try.

A call is a generator that yields `Send` and `Wait` and is sent a `Reply` (None after a `Wait`); its return value is the
result.  So each call is written once, without I/O, and `clover.client.clients` drives it with and without asyncio.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

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

T = TypeVar("T")

_CLASSES: dict[int, type[RequestError]] = {
    one.status: one
    for one in (BadRequest, NotFound, Conflict, TooLarge, Overloaded, ModelFailed, Unavailable, DeadlineMissed)
}

_JITTER_S = 1.0


@dataclass(frozen=True, slots=True)
class Send:
    """One HTTP request: `path` below the server's address, and the most seconds until its answer is read."""

    method: str
    path: str
    timeout_s: float
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Wait:
    """A pause before the next try."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a `Send`: header names are in lower case.  Status 0: none came, and `error` says why; `late` says
    that the time was over."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    error: str = ""
    late: bool = False


Call = Generator[Send | Wait, Any, T]


class ServerUnreachable(CloverError):
    """No answer came: the server does not listen there, or the connection broke."""


def error_of(reply: Reply) -> CloverError:
    """Return the error of an answer that reports no success: `status` and `retry_after_s` are the answer's."""
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


@dataclass(frozen=True, slots=True)
class Retries:
    """When a call is tried again: how often at most, and how long the first pause is (s) if the server names none.

    Inference changes nothing, so a call whose answer was lost may be sent again.  A call is tried again if no answer
    came (refused or broken connections), after 429, after 502 of a proxy, and after 503 with a Retry-After.  Any other
    status would come again.

    A pause is never shorter than Retry-After: at that time, and up to 2 s later, a refused request has a place in the
    server's queue, found by its `x-request-id` (the same for all tries).  Without Retry-After, pauses double from
    `first_s`.  Jitter, drawn by `uniform(low, high)`, makes pauses longer: by up to half, or by at most `_JITTER_S`
    after a Retry-After.  If a pause would end past the caller's deadline, the error is raised at once.
    """

    most: int = 3
    first_s: float = 0.1
    longest_s: float = 10.0
    uniform: Callable[[float, float], float] = random.uniform

    def pause_s(self, done: int, reply: Reply, left_s: float) -> float | None:
        """Return the pause before the next try after `done` tries, of which the last was answered with `reply` and
        `left_s` seconds before the deadline; None to give up."""
        after_s = retry_after_s(reply)
        if done > self.most or reply.late:
            return None
        if reply.status not in (0, 429, 502) and not (reply.status == 503 and after_s is not None):
            return None
        if after_s is not None:
            pause_s = after_s + self.uniform(0.0, min(_JITTER_S, 0.5 * after_s))
        else:
            pause_s = min(self.first_s * 2.0 ** (done - 1), self.longest_s) * self.uniform(1.0, 1.5)
        return pause_s if pause_s < left_s else None
