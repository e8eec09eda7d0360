"""What a call asks of whoever drives it: send this request, wait so long.

A call is a generator that yields `Send` and `Wait` and is sent a `Reply` (None after a `Wait`); its return value is the
result.  So each call is written once, without I/O, and `clover.client.clients` drives it with and without asyncio.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


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
